"""Check this machine: what is installed, and what works."""
