"""What everything stands on: files, errors, the terminal, the environment."""
