"""Thinwire inside other frameworks: one file each, of which none imports another."""
