"""Tokens and records on disk, and the order and batches in which each rank reads them."""
