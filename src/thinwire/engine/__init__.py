"""The engine: `attach` puts a strategy to work on a model and an optimiser; `join` does where ranks
may be late, leave and come."""

from thinwire.engine.attach import attach
from thinwire.engine.join import join
from thinwire.engine.meter import Report, Row
from thinwire.engine.quorum import QuorumSyncer
from thinwire.engine.syncer import Syncer

__all__ = ["QuorumSyncer", "Report", "Row", "Syncer", "attach", "join"]
