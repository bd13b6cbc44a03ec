"""Strategies: when × what × how × on, named recipes of them, their code and their fingerprints."""

from thinwire.strategy.fingerprint import fingerprint
from thinwire.strategy.strategy import Strategy

__all__ = ["Strategy", "fingerprint"]
