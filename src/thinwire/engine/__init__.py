"""The engine: `attach` puts a strategy to work on a model and an optimiser."""

from thinwire.engine.attach import attach
from thinwire.engine.observe.meter import Report, Row
from thinwire.engine.syncer import Syncer

__all__ = ["Report", "Row", "Syncer", "attach"]
