"""The optimisers that `thinwire train` offers, and the learning rate of each step."""
