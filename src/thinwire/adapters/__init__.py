"""Thinwire inside other frameworks: one file each. No framework's file imports another's."""
