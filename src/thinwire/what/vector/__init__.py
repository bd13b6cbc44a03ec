"""Codecs that encode several values at once: rotations, transforms, lattices, codebooks."""
