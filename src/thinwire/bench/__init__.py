"""Strategies and rivals on the same model, text and links; see `thinwire bench`."""
