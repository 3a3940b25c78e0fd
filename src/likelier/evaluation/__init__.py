"""What the numbers of pairs say: metrics by the field's names, on training and held-out pairs."""
