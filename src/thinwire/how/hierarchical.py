"""Two levels: exact and fast inside a node, thin between nodes.

Steps, with nodes of L ranks:
    1. inside each node, sum (by `inner`)
    2. rank l of every node takes the l-th of L spans of its node's sum and carries it, with the strategy's codec, to its peers in the other
       nodes by `outer`
    3. inside each node, the L spans are handed round, exactly
Only step 2 crosses the thin wire, with M/L per rank: T = T_inner(M) + T_outer(m/L) + (L-1)/L · M/B_inner.
(The hierarchical all-reduce of BlueConnect, Cho et al. 2019, with a codec on the outer hop as in ZeRO++, arXiv:2306.10209.)
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from thinwire.core import AllReduce, Codec, Exchange, Flight, Outcome, Ranks, Route, Seat, Spec, State, allreduce_nbytes
from thinwire.errors import StrategyError
from thinwire.how.native import native
from thinwire.kernels import reference


@dataclass(frozen=True)
class hierarchical(Route):
    """`inner` inside nodes of `node` neighbouring ranks, `outer` between them; the strategy's codec speaks on the outer hop only.

    Args:
        inner: `native()` (exact), or a route with its own codec: `(two_shot(), cast("bf16"))`.
        outer: the route between nodes.
        node: ranks a node; ranks 0 … node-1 are the first.

    Raises:
        StrategyError: node < 1; an inner route other than native() without a codec; a pair that its own route refuses; nested hierarchies.
            At attach: a world that is no multiple of `node`.

    Example:
        >>> hierarchical(native(), native(), node=2).groups(world=4)
        ((0, 1), (2, 3), (0, 2), (1, 3))
    """

    inner: Route | tuple[Route, Codec]
    outer: Route
    node: int

    def __post_init__(self) -> None:
        reasons = []
        route, codec = self._inner
        if self.node < 1:
            reasons.append(f"hierarchical(node={self.node}): a node has at least 1 rank")
        if isinstance(route, hierarchical) or isinstance(self.outer, hierarchical):
            reasons.append("hierarchical(…): a level cannot be hierarchical itself; there are two levels")
        if codec is None and not isinstance(route, native):
            reasons.append(f"hierarchical(inner={route!r}): give its codec, as ({route!r}, identity()); only native() is exact by itself")
        refusal = route.refuses(codec) if codec is not None else None
        if refusal:
            reasons.append(refusal)
        if reasons:
            raise StrategyError(reasons)

    @property
    def _inner(self) -> tuple[Route, Codec | None]:
        return self.inner if isinstance(self.inner, tuple) else (self.inner, None)

    def refuses(self, codec: Codec) -> str | None:
        return self.outer.refuses(codec)

    def groups(self, world: int) -> tuple[Ranks, ...]:
        if world % self.node:
            raise StrategyError(
                f"hierarchical(node={self.node}): a world of {world} ranks is no multiple of {self.node}; every node has as many ranks"
            )
        nodes = [tuple(range(first, first + self.node)) for first in range(0, world, self.node)]
        peers = [tuple(range(place, world, self.node)) for place in range(self.node)]
        return tuple(group for group in (*nodes, *peers) if 1 < len(group) < world)

    def init(self, codec: Codec, spec: Spec, seat: Seat) -> State:
        inside, across = self._seats(seat)
        route, inner_codec = self._inner
        state = State(children={"outer": self.outer.init(codec, self._span(codec, spec, inside), across)})
        if inner_codec is not None:
            state.children["inner"] = route.init(inner_codec, spec, inside)
        return state

    def carry(self, codec: Codec, x: Tensor, spec: Spec, state: State, seat: Seat) -> Flight:
        inside, across = self._seats(seat)
        route, inner_codec = self._inner
        if inner_codec is not None:
            x = (yield from route.carry(inner_codec, x, spec, state.child("inner"), inside)).total
        elif inside.world > 1 and spec.numel:
            x = yield AllReduce(x.to(spec.dtype), inside.group)

        spans = spec.cut(inside.world, codec.grain)
        own = spans[inside.place]
        mine = x[own.begin - spec.begin : own.end - spec.begin]
        outcome = yield from self.outer.carry(codec, mine, own, state.child("outer"), across)

        payload = reference.as_bytes(outcome.total.to(spec.dtype))
        shares = {seat.rank: payload}
        if inside.world > 1:
            sizes = {rank: span.numel * spec.dtype.itemsize for rank, span in zip(inside.group, spans, strict=True)}
            away = tuple((rank, sizes[rank]) for rank in reversed(inside.others))
            shares |= yield Exchange(tuple((rank, payload) for rank in inside.others), away)
        return Outcome(reference.from_bytes(torch.cat([shares[rank] for rank in inside.group]), spec.dtype).to(spec.work))

    def sent_nbytes(self, codec: Codec, spec: Spec, seat: Seat) -> float | None:
        inside, across = self._seats(seat)
        route, inner_codec = self._inner
        whole = spec.numel * spec.dtype.itemsize
        inner = route.sent_nbytes(inner_codec, spec, inside) if inner_codec else allreduce_nbytes(whole, inside.world)
        own = self._span(codec, spec, inside)
        outer = self.outer.sent_nbytes(codec, own, across)
        if inner is None or outer is None:
            return None
        return inner + outer + (inside.world - 1) * own.numel * spec.dtype.itemsize

    def _seats(self, seat: Seat) -> tuple[Seat, Seat]:
        """This rank among its node, and among its peers in the other nodes."""
        first = seat.place // self.node * self.node
        node = seat.group[first : first + self.node]
        peers = seat.group[seat.place % self.node :: self.node]
        return replace(seat.under("inner"), group=node), replace(seat.under("outer"), group=peers)

    def _span(self, codec: Codec, spec: Spec, inside: Seat) -> Spec:
        return spec.cut(inside.world, codec.grain)[inside.place]
