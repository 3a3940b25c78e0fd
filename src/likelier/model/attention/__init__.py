"""Attention over the prefix tree: one function a kind of device, and where models meet them."""
