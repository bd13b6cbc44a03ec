"""The version, told to other ranks at attach and written into runs."""

__version__ = "0.1.0"
