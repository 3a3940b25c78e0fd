"""The reference model as a column of the data: log-probs per token, computed once."""
