"""Sum at parameter servers: a few ranks add up for all, each a part of the bucket.

Steps, with servers s_1 … s_S out of K ranks, each of which also works:
    1. cut the bucket in S spans; encode each; span j goes to server s_j
    2. each server adds up K payloads, in rank order: unopened where they add, else opened
    3. it sends the sum to everyone: as it is where payloads add, else encoded again by their coder,
       or by `back` (`identity()`: dense)
T = 2 α + 2 (o + (K-1) m/(S B)) or a little more: the servers' links limit it. Let S divide K:
workers then take turns at the servers. Else they meet there, which took up to 2.7 times as long in
the simulator. With every rank a server it is `two_shot()`. (Li et al. 2014, "Scaling distributed
machine learning with the parameter server"; BytePS, Jiang et al. 2020, for servers with a codec.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from thinwire.core import Codec, Ranks
from thinwire.errors import StrategyError
from thinwire.how._star import Star


@dataclass(frozen=True)
class server(Star):
    """Send from all ranks to a few, which add up and answer.

    m bytes (less a server's own part) leave a worker, (K-1)·m/S more a server.

    Args:
        ranks: the servers, each with an even part of the bucket; counted within the group (between
            nodes, the node's number).
        back: the codec of the sums. `None` leaves sums of what adds as they are, and encodes others
            again with the coder that opens the codec's own packets, without feedback; `feedback(…)`
            keeps what servers leave encoded for the next time; `identity()` is dense.

    Raises:
        StrategyError: no servers, or one twice, or a negative rank; (when the strategy is built)
            `back` is `None` and the codec leaves entries out and does not add; or `back` is given
            and a codec sends in several rounds or parts. At attach: a server that the world does
            not have.

    Example:
        >>> import torch
        >>> from thinwire.core import RankContext, Spec
        >>> from thinwire.what import identity
        >>> spec, world = Spec((), 0, 12, torch.float32), (0, 1, 2, 3)
        >>> contexts = [RankContext(rank, world, 0, 0) for rank in world]
        >>> [server((0, 1)).sent_nbytes(identity(), spec, ctx) for ctx in contexts]
        [96, 96, 48, 48]
    """

    ranks: Ranks = (0,)
    back: Codec | None = None

    def __post_init__(self) -> None:
        if not self.ranks or min(self.ranks) < 0 or len(set(self.ranks)) < len(self.ranks):
            raise StrategyError(
                f"server(ranks={self.ranks}): name at least one server, each once, from rank 0 "
                "on, such as server((0,))"
            )

    def refuses(self, codec: Codec) -> str | None:
        if self.back is None and codec.traits.drops and not codec.traits.summable:
            return (
                f"Cannot carry {codec!r} over {self!r}: encoding the sum again would drop entries "
                "that the ranks chose to send. "
                "Use back=identity() for dense sums, or back= a codec with feedback, such as "
                "server((0,), back=feedback(topk(…)))"
            )
        return self.refuses_back(codec)

    def groups(self, world: int) -> tuple[Ranks, ...]:
        missing = [rank for rank in self.ranks if rank >= world]
        if missing:
            raise StrategyError(
                f"{self!r}: there are no ranks {missing} in a world of {world}; name servers from "
                f"0 to {world - 1}"
            )
        return ()

    def owners(self, world: int) -> Sequence[int]:
        self.groups(world)
        return self.ranks

    def reencodes(self, codec: Codec, world: int) -> int:
        return int(self.back is not None or (world > 1 and not codec.traits.summable))
