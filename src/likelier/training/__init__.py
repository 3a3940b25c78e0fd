"""One step after another: gradients, optimizer, checkpoints, and when to stop."""
