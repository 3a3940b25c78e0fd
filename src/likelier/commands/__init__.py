"""One file a command: words of the command line into calls."""
