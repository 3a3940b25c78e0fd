"""Loading, adapters, attention, and the one forward that turns a pass into log-probs."""
