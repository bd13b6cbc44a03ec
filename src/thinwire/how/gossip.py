"""Average each rank with one or two others; it never waits for the rest.

Steps, with K ranks and a doubly stochastic matrix W that every rank computes alike:
    1. send this rank's payload to one or two others, and receive one or two (all other W_rj are 0)
    2. total_r = K · sum over j of W_rj · x̂_j
The mean over ranks of these totals is the sum of all x̂, whatever W: nothing is lost or counted
twice. The ranks do not end equal, but each round brings *parameters* closer together: their
variance falls by the square of W's second singular value.
    "pairs"        random pairs, drawn anew each step from the shared seed (with K odd, one random
                   rank stays alone): W = 1/2, 1/2
    "ring"         both neighbours by number: W = 1/3, 1/3, 1/3
    "exponential"  one peer, 2^t ranks on, t counting flights round 0 … ceil(log2 K) - 1: W = 1/2,
                   1/2; where K is a power of two, log2 K flights of values that do not change give
                   every rank the exact mean
T = α + o + m/B ("ring": α + 2 (o + m/B)), whatever K. (Boyd et al. 2006; D-PSGD, Lian et al. 2017,
arXiv:1705.09056; SGP, Assran et al. 2019, arXiv:1811.10792; exponential graphs, Ying et al. 2021,
arXiv:2110.13363.)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor

from thinwire.core import (
    Codec,
    Flight,
    Leaf,
    Link,
    Outcome,
    Packet,
    Part,
    RankContext,
    Route,
    Spec,
    State,
    Target,
)
from thinwire.errors import StrategyError
from thinwire.how._plan import largest
from thinwire.how._rounds import TensorFlight, one_span, swap

Topology = Literal["pairs", "ring", "exponential"]
_NOBODY = Spec((), 0, 0, torch.float32)


@dataclass(frozen=True)
class gossip(Route):
    """Average with one or two other ranks; m bytes out of each ("ring": 2 m).

    Args:
        topology: "pairs", "ring" or "exponential".

    Raises:
        StrategyError: another topology; (when the strategy is built) a codec with state that all
            ranks must hold equal, or a target other than `parameters()`: a gradient or a delta that
            differs from rank to rank drives them apart for good.

    Weights of ranks must be alike (`attach` and `weigh` refuse others): K times a weighted share is
    no mean of the one or two received.

    Example:
        >>> from thinwire.on import gradients, parameters
        >>> gossip().suits(parameters()) is None, "Use parameters()" in gossip().suits(gradients())
        (True, True)
    """

    topology: Topology = "pairs"
    consensus: ClassVar[bool] = False
    carries_mask: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.topology not in get_args(Topology):
            raise StrategyError(
                f"gossip({self.topology!r}): choose {', '.join(map(repr, get_args(Topology)))}"
            )

    def suits(self, on: Target) -> str | None:
        if on.contracts:
            return None
        return (
            f"Cannot use {self!r} on {on!r}: what it writes would differ from rank to rank, and "
            "nothing would bring the ranks' parameters "
            "together again. Use parameters(), whose averages draw them together, or a route with "
            "consensus, such as two_shot()"
        )

    def refuses(self, codec: Codec) -> str | None:
        # Which state a codec keeps shows when it is made, here for a small matrix.
        probe = Spec((Part("probe", (64, 64), 0, "matrix"),), 0, 64 * 64, torch.float32)
        kinds = {leaf.kind for _, leaf in codec.init(probe, RankContext(0, (0, 1), 0, 0)).walk()}
        if "replicated" not in kinds:
            return None
        return (
            f"Cannot carry {codec!r} over {self!r}: it keeps state that every rank must hold "
            "equal, and ranks receive different sums. "
            "Use a codec without such state, such as identity(), or a route with consensus"
        )

    def init(self, codec: Codec, spec: Spec, ctx: RankContext) -> State:
        flown = Leaf(torch.zeros((), dtype=torch.int64, device="cpu"), "private", part=spec.key)
        return State(
            {"flown": flown} if self.topology == "exponential" else {},
            {"codec": codec.init(spec, ctx)},
        )

    def carry(
        self, codec: Codec, x: Tensor, spec: Spec, state: State, ctx: RankContext
    ) -> Flight[Outcome]:
        # 1. Whose turn it is: the exponential graph counts its own flights, as a span may not fly
        #    at every step.
        flown = 0
        if self.topology == "exponential":
            leaf = state["flown"]
            flown, leaf.value = int(leaf.value), leaf.value + 1
        to, sources = self.peers(ctx, flown)
        # 2. Each of the codec's rounds goes to the same peers.
        outcome: Outcome = yield from one_span(
            codec.rounds(x, spec, state.child("codec"), ctx),
            lambda packet: _total(packet, ctx, to, sources),
        )
        return outcome

    def peers(self, ctx: RankContext, flown: int = 0) -> tuple[list[int], list[int]]:
        """Return the ranks that this one sends to in a flight, and those that it receives from."""
        world, me = ctx.world, ctx.group_rank
        if world == 1:
            return [], []
        if self.topology == "pairs":
            # In a random order of the ranks, which all draw alike, 2i and 2i+1 are a pair.
            order = torch.randperm(world, generator=ctx.generator(_NOBODY, shared=True)).tolist()
            at = order.index(me) ^ 1
            peer = [ctx.group[order[at]]] if at < world else []
            return peer, peer
        if self.topology == "ring":
            # On a ring of two both neighbours are the same rank: once is enough.
            both = [ctx.group[(me + 1) % world], ctx.group[me - 1]]
            return (both, both[::-1]) if world > 2 else (both[:1], both[:1])
        # Distances 1, 2, 4, … below K, round and round.
        on = 2 ** (flown % (world - 1).bit_length())
        return [ctx.group[(me + on) % world]], [ctx.group[(me - on) % world]]

    def sent_nbytes(self, codec: Codec, spec: Spec, ctx: RankContext) -> float | None:
        nbytes = codec.nbytes(spec)
        return None if nbytes is None else nbytes * len(self.peers(ctx)[0])

    def sent_messages(self, codec: Codec, spec: Spec, ctx: RankContext) -> float | None:
        nbytes = codec.nbytes(spec)
        return (
            None
            if nbytes is None or codec.single_packet_coder is None
            else len(self.peers(ctx)[0]) * (nbytes > 0)
        )

    def seconds(self, codec: Codec, spec: Spec, ctx: RankContext, link: Link) -> float:
        peers = 0 if ctx.world == 1 else 2 if self.topology == "ring" and ctx.world > 2 else 1
        return link.seconds(*[largest(codec, spec)] * peers)


def _total(packet: Packet, ctx: RankContext, to: list[int], sources: list[int]) -> TensorFlight:
    """Return K times the mean of the rank's own and what it receives, in the order of ranks."""
    send = [(rank, packet.payload, packet.fixed) for rank in to]
    received = yield from swap(
        send, [(rank, packet.coder, packet.spec) for rank in sources], packet.payload.device
    )
    received[ctx.rank] = packet.payload
    # K times the mean of those that took part stands for the sum over all K ranks.
    total: Tensor | None = None
    for rank in sorted(received):
        total = packet.add(total, received[rank], rank)
    assert total is not None
    return total.mul_(ctx.world / len(received)) if len(received) < ctx.world else total
