"""Real text that comes with the package, for examples, tests and benchmarks that need no download."""

from thinwire.data.english import english

__all__ = ["english"]
