"""Run the training command: settings, the training loop, checkpoints, and what a run prints and
writes."""
