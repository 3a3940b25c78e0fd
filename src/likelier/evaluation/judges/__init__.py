"""Judges: who says which of two answers is better, what it costs, and how often a model wins."""
