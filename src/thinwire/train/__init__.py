"""A small GPT on bytes, its batches and its training command: the model that Thinwire is shown and
measured with."""
