"""Codecs that send each matrix or tensor as a few thin factors."""
