"""Codecs that send some values and their indices, and leave the others out."""
