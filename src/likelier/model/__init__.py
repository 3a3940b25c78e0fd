"""Loading, adapters, attention, and the one forward that turns a batch into log-probs."""
