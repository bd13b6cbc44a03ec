"""The version: ranks compare it at attach, and runs record it."""

__version__ = "0.1.0"
