"""Reduce-scatter, then all-gather, both compressed: each rank owns a K-th of the bucket.

Steps:
    1. cut the bucket in K spans at the codec's grain, span j owned by rank j; encode each
    2. send span j's payload to its owner; each owner decodes K payloads, in rank order, and adds
       them
    3. the owner encodes the sum again (by `back`, or by the codec that opened the payloads) and
       sends it to the others
    4. every rank, the owner too, decodes the K sums
T = 2 (α + (K-1) (o + m/(K B))), o the time a message: the least bytes, two losses. Large messages
go in slots, 2 (K-1) (α + o + m/(K B)), so that a rank that is ahead does not send to one that still
receives another. `back=feedback(sign())` keeps the second loss for later (two-sided feedback). (The
scheme of 1-bit Adam's compressed all-reduce, Tang et al. 2021, arXiv:2102.02888, and of ZeRO++'s
qgZ, arXiv:2306.10209.)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from thinwire.core import Codec
from thinwire.core.component import spelled_out
from thinwire.how._star import Star


@dataclass(frozen=True, repr=False)
class two_shot(Star):
    """Send encoded spans to their owners, sum them there, send encoded sums to all.

    Args:
        back: the codec of the sums; `None` uses the coder that opens the codec's own packets,
            without feedback.
        slot_bytes: messages of so many bytes and more go in slots: a rank sends to the k-th rank
            after it once it has received the one before, so that no two messages meet. `None`: from
            1 MiB on, or where a round trip is an eighth of a message, as measured at attach.

    Raises:
        StrategyError: slot_bytes < 0; (when the strategy is built) `back` is `None` and the codec
            leaves entries out, which a second time would lose what the ranks chose; or `back` is
            given and a codec sends in several rounds or parts.

    Example:
        >>> from thinwire.what import topk
        >>> "give back=" in two_shot().refuses(topk(0.01))
        True
    """

    back: Codec | None = None
    slot_bytes: int | None = None
    unopened: ClassVar[bool] = False

    def __repr__(self) -> str:
        return spelled_out(self, 1)

    def refuses(self, codec: Codec) -> str | None:
        if self.back is None and codec.traits.drops:
            return (
                f"Cannot carry {codec!r} over two_shot(): encoding the sum again would drop "
                "entries that the ranks chose to send. "
                "Use gather(), or give back= a codec with feedback, such as "
                "two_shot(back=feedback(topk(…)))"
            )
        return self.refuses_back(codec)

    def reencodes(self, codec: Codec, world: int) -> int:
        return int(world > 1 or self.back is not None)
