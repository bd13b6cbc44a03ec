"""Close rounds of local steps with a quorum of ranks, so that no rank waits for a certain other."""

from thinwire.quorum.join import join
from thinwire.quorum.syncer import QuorumSyncer

__all__ = ["QuorumSyncer", "join"]
