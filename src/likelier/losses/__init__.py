"""Preference losses: pure functions of log-probs, one small file per family."""
