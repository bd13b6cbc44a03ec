"""Codecs that encode each value by itself: casts, grids of levels, and scales for blocks."""
