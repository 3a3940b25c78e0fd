"""Trackers: the rows of a run's log shown in TensorBoard, Weights & Biases or Trackio, too."""
