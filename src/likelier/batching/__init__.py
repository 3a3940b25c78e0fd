"""From sequences to passes: the prefix tree, and which pairs share one."""
