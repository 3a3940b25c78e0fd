"""The reference model: its log-probs per token, computed once, or live where it moves."""
