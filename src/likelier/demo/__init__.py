"""The demo: a small world, a base model that learned it, and one run of preference training."""
