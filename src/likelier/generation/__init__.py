"""Answers sampled from a model, with the settings that made them."""
