"""The trained model as ordinary files."""
