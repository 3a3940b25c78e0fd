"""Data: from rows of a file to pairs, and from pairs to tokens."""
