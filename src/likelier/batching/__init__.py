"""From sequences to batches: the prefix tree, and which pairs share one."""
