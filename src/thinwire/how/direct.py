"""Sum by direct messages, for payloads that add unopened.

Each rank adds up a K-th of the bucket and sends the sum to all others.

Steps:
    1. cut the bucket in K spans at the codec's grain, span j owned by rank j; encode each
    2. send span j's payload straight to its owner, in phases: round k to the k-th rank after this
       one
    3. each owner adds K payloads, in rank order, without opening them, and sends the sum to the
       others
    4. every rank opens the K sums
T = 2 (α + (K-1) (o + m/(K B))), o the time a message: the bytes of a ring, two latencies instead of
2 (K-1), one loss. Large messages go in slots, 2 (K-1) (α + o + m/(K B)), so that a rank that is
ahead does not send to one that still receives another. It is `native()` by messages of our own, and
fills the wire where the transport's all-reduce keeps little in flight (gloo: 2 MiB a round trip).
(Reduce-scatter and all-gather by pairwise exchange: Thakur, Rabenseifner & Gropp 2005.)
"""

from __future__ import annotations

from dataclasses import dataclass

from thinwire.core import Codec
from thinwire.core.component import spelled_out
from thinwire.how._star import Star


@dataclass(frozen=True, repr=False)
class direct(Star):
    """Send spans to their owners, add payloads unopened there, and send the sums to all.

    2 (K-1)/K · m bytes leave each rank.

    Sums of 16-bit floats are taken in float32 and rounded once.

    Args:
        slot_bytes: messages of so many bytes and more go in slots: a rank sends to the k-th rank
            after it once it has received the one before, so that no two messages meet. `None`: from
            1 MiB on, or where a round trip is an eighth of a message, as measured at attach.

    Raises:
        StrategyError: slot_bytes < 0; (when the strategy is built) the codec's payloads cannot be
            added unopened.

    Example:
        >>> from thinwire.what import randomk, uniform
        >>> direct().refuses(randomk(0.1)) is None, "Use two_shot()" in direct().refuses(uniform(4))
        (True, True)
    """

    slot_bytes: int | None = None

    def __repr__(self) -> str:
        return spelled_out(self, 0)

    def refuses(self, codec: Codec) -> str | None:
        if codec.traits.summable:
            return None
        other = (
            "Use gather()"
            if codec.traits.drops
            else "Use two_shot(), which opens, adds and encodes again, or gather() for 2 ranks"
        )
        return (
            f"Cannot carry {codec!r} over direct(): its payloads cannot be added unopened. {other}"
        )
