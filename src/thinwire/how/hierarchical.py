"""Sum in levels: exactly inside a node, with the codec between nodes, and so on outwards.

Steps, with nodes of L ranks:
    1. inside each node, rank l receives the l-th of L spans from all and adds them in rank order,
       exactly; or the node sums everything by `inner` and its codec
    2. rank l sums its span with its peers in the other nodes, by `outer` and the strategy's codec
    3. inside each node, each rank sends its span to the others, exactly
Only step 2 crosses the thin wire, with M/L per rank: T = T_outer(m/L) + 2 (α_in + (L-1) (o + M/(L
B_in))), o the time a message. `outer` may have levels itself: nodes of nodes. (The hierarchical
all-reduce of BlueConnect, Cho et al. 2019, with a codec on the outer hop as in ZeRO++,
arXiv:2306.10209.)
"""

from __future__ import annotations

from collections.abc import Generator, Iterable
from dataclasses import dataclass, replace
from typing import Any, Literal, Self

from torch import Tensor

from thinwire import env
from thinwire.core import (
    Codec,
    Exchange,
    Flight,
    Link,
    Outcome,
    RankContext,
    Ranks,
    Route,
    Spec,
    State,
)
from thinwire.errors import StrategyError
from thinwire.how.native import native
from thinwire.kernels import memory, reference


@dataclass(frozen=True)
class hierarchical(Route):
    """Sum by `inner` inside nodes of `node` neighbouring ranks, and by `outer` between nodes.

    The strategy's codec encodes for the outer route only.

    Args:
        inner: `native()`, which is exact, or a route with its own codec: `(two_shot(),
            cast("bf16"))`.
        outer: the route between nodes; another `hierarchical(…)` has nodes of `node` times its own.
        node: ranks a node; ranks 0 … node-1 are the first. "local" takes what the launcher has
            set (torchrun's LOCAL_WORLD_SIZE).

    Raises:
        StrategyError: node < 1; an inner route other than native() without a codec; a pair that its
            own route refuses; a level without consensus. At attach: a world that is no multiple of
            `node`; "local" without a launcher.

    Example:
        >>> hierarchical(native(), native(), node=2).groups(world=4)
        ((0, 2), (1, 3))
        >>> hierarchical(native(), hierarchical(native(), native(), node=2), node=2).groups(world=8)
        ((0, 2, 4, 6), (1, 3, 5, 7), (0, 4), (2, 6), (1, 5), (3, 7))
    """

    inner: Route | tuple[Route, Codec]
    outer: Route
    node: int | Literal["local"] = "local"

    def __post_init__(self) -> None:
        reasons = []
        route, codec = self._inner
        if self.node != "local" and (not isinstance(self.node, int) or self.node < 1):
            reasons.append(
                f"hierarchical(node={self.node!r}): a node has at least 1 rank; or 'local', what "
                "the launcher says"
            )
        reasons += [
            (
                f"hierarchical(…): {level!r} leaves ranks with different sums, which a level "
                "cannot hand on; take a route with consensus"
            )
            for level in (route, self.outer)
            if not level.consensus
        ]
        if codec is None and not isinstance(route, native):
            reasons.append(
                f"hierarchical(inner={route!r}): give its codec, as ({route!r}, identity()); only "
                "native() is exact by itself"
            )
        refusal = route.refuses(codec) if codec is not None else None
        if refusal:
            reasons.append(refusal)
        if reasons:
            raise StrategyError(reasons)

    @classmethod
    def on_mesh(cls, mesh: Any, *levels: Route | tuple[Route, Codec]) -> hierarchical:
        """Return the levels of a `torch.distributed.device_mesh.DeviceMesh`.

        The mesh's last dimension is the innermost level.

        Args:
            mesh: over ranks 0, 1, 2 … in order, such as `init_device_mesh("cpu", (nodes,
                ranks_a_node))`.
            levels: a route for each dimension, the innermost first.

        Raises:
            StrategyError: a mesh of one dimension, or in another order; not as many levels as
                dimensions.

        Example:
            >>> import torch
            >>> from types import SimpleNamespace
            >>> # a DeviceMesh: only its `mesh` is read
            >>> mesh = SimpleNamespace(mesh=torch.arange(8).view(2, 4))
            >>> hierarchical.on_mesh(mesh, native(), native())
            hierarchical(inner=native(), outer=native(), node=4)
        """
        ranks: Tensor = mesh.mesh
        if ranks.dim() < 2 or ranks.flatten().tolist() != list(range(ranks.numel())):
            raise StrategyError(
                f"hierarchical.on_mesh: a mesh of shape {tuple(ranks.shape)} over ranks "
                f"{ranks.flatten().tolist()[:8]}: it must have two "
                "dimensions or more, and ranks numbered node by node (0, 1, 2 …). Start the ranks "
                "of a node one after another"
            )
        if len(levels) != ranks.dim():
            raise StrategyError(
                f"hierarchical.on_mesh: {len(levels)} levels for a mesh of {ranks.dim()} "
                "dimensions; give one route for each"
            )
        route = levels[-1]
        if not isinstance(route, Route):
            raise StrategyError(
                f"hierarchical.on_mesh: the outermost level is {route!r}; the strategy's codec "
                "encodes there, so give a route alone"
            )
        # Wrap from the outside in: each level has nodes of the size of its dimension.
        for level, size in zip(reversed(levels[:-1]), ranks.shape[1:], strict=True):
            route = cls(level, route, int(size))
        assert isinstance(route, hierarchical)
        return route

    @property
    def _inner(self) -> tuple[Route, Codec | None]:
        return self.inner if isinstance(self.inner, tuple) else (self.inner, None)

    @property
    def size(self) -> int:
        """Return how many ranks a node has.

        Raises:
            StrategyError: it is "local", and there is no launcher.
        """
        if self.node != "local":
            return self.node
        local = env.text("LOCAL_WORLD_SIZE")
        if not local.isdigit() or int(local) < 1:
            raise StrategyError(
                f"hierarchical(node='local'): LOCAL_WORLD_SIZE is {local!r}, so nobody says how "
                "many ranks a node has. "
                "Start with torchrun, or give node=, such as node=8"
            )
        return int(local)

    @property
    def needs_link(self) -> bool:
        return self._inner[0].needs_link or self.outer.needs_link

    @property
    def uses_allreduce(self) -> bool:
        return self._inner[0].uses_allreduce or self.outer.uses_allreduce

    def refuses(self, codec: Codec) -> str | None:
        return self.outer.refuses(codec)

    def bind(self, world: int, link: Link | None = None) -> Self:
        self.groups(world)
        size, inside = self.size, link.inside or link if link else None
        route, codec = self._inner
        inner = route.bind(size, inside)
        outer = self.outer.bind(world // size, link)
        return replace(
            self, inner=(inner, codec) if codec is not None else inner, outer=outer, node=size
        )

    def groups(self, world: int) -> tuple[Ranks, ...]:
        size = self.size
        if world % size:
            raise StrategyError(
                f"hierarchical(node={size}): a world of {world} ranks is no multiple of {size}; "
                "every node has as many ranks"
            )
        route, codec = self._inner
        # 1. Who meets: peers across nodes, and nodes themselves where the inner route has a codec;
        #    exact sums inside a node go by exchanges.
        nodes = (
            []
            if codec is None
            else [tuple(range(first, first + size)) for first in range(0, world, size)]
        )
        peers = [tuple(range(number, world, size)) for number in range(size)]
        # 2. The groups that the levels' own routes all-reduce over, in this world's numbers.
        within = [
            *_numbered(route.groups(size), nodes),
            *_numbered(self.outer.groups(world // size), peers),
        ]
        return tuple(
            dict.fromkeys(group for group in (*nodes, *peers, *within) if 1 < len(group) < world)
        )

    def partners(self, group_rank: int, world: int) -> int:
        route, codec = self._inner
        inside = group_rank % self.size
        within = self.size - 1 if codec is None else route.partners(inside, self.size)
        nodes = world // self.size
        return max(within, self.size - 1) + self.outer.partners(group_rank // self.size, nodes)

    def init(self, codec: Codec, spec: Spec, ctx: RankContext) -> State:
        inside, across = self._contexts(ctx)
        route, inner_codec = self._inner
        state = State(
            children={"outer": self.outer.init(codec, self._span(codec, spec, inside), across)}
        )
        if inner_codec is not None:
            state.children["inner"] = route.init(inner_codec, spec, inside)
        return state

    def carry(
        self, codec: Codec, x: Tensor, spec: Spec, state: State, ctx: RankContext
    ) -> Flight[Outcome]:
        inside, across = self._contexts(ctx)
        route, inner_codec = self._inner

        # 1. Sum inside the node: everything by the inner codec, or this rank's span exactly.
        if inner_codec is not None:
            x = (yield from route.carry(inner_codec, x, spec, state.child("inner"), inside)).total

        spans = spec.cut(inside.world, codec.traits.grain)
        spans_of_x = {
            rank: x[span.begin - spec.begin : span.end - spec.begin]
            for rank, span in zip(inside.group, spans, strict=True)
        }
        own, mine = spans[inside.group_rank], spans_of_x[ctx.rank]
        if inner_codec is None and inside.world > 1:
            mine = yield from _scattered(spans_of_x, own, inside)

        # 2. Sum this rank's span between nodes.
        outcome = yield from self.outer.carry(codec, mine, own, state.child("outer"), across)

        # 3. Give the span to the node's other ranks, in the bucket's own type. A total in float32
        #    is rounded to the bucket's type here, on its one owner, so that all ranks of the node
        #    hold the same bits.
        payload = reference.as_bytes(outcome.total.to(spec.dtype))
        payloads = {ctx.rank: payload}
        if inside.world > 1:
            sizes = {
                rank: span.numel * spec.dtype.itemsize
                for rank, span in zip(inside.group, spans, strict=True)
            }
            away = tuple((rank, sizes[rank]) for rank in reversed(inside.others))
            payloads |= yield Exchange(tuple((rank, payload) for rank in inside.others), away)
        return Outcome(
            reference.from_bytes(
                memory.cat([payloads[rank] for rank in inside.group]), spec.dtype
            ).to(spec.work)
        )

    def reencodes(self, codec: Codec, world: int) -> int:
        route, inner_codec = self._inner
        size = self.size
        return self.outer.reencodes(codec, world // size) + (
            route.reencodes(inner_codec, size) if inner_codec is not None else 0
        )

    def sent_nbytes(self, codec: Codec, spec: Spec, ctx: RankContext) -> float | None:
        inside, _ = self._contexts(ctx)
        route, inner_codec = self._inner
        own = self._span(codec, spec, inside).numel
        inner = (
            route.sent_nbytes(inner_codec, spec, inside)
            if inner_codec
            else (spec.numel - own) * spec.dtype.itemsize
        )
        outer = self.outer_nbytes(codec, spec, ctx)
        if inner is None or outer is None:
            return None
        return inner + outer + (inside.world - 1) * own * spec.dtype.itemsize

    def outer_nbytes(self, codec: Codec, spec: Spec, ctx: RankContext) -> float | None:
        """Return the bytes of a flight that go to other nodes; `None` where the data decides."""
        inside, across = self._contexts(ctx)
        return self.outer.sent_nbytes(codec, self._span(codec, spec, inside), across)

    def sent_messages(self, codec: Codec, spec: Spec, ctx: RankContext) -> float | None:
        inside, across = self._contexts(ctx)
        route, inner_codec = self._inner
        spans = spec.cut(inside.world, codec.traits.grain)
        own, full = spans[inside.group_rank], sum(span.numel > 0 for span in spans)
        # An exact level sends each other rank its span, and later its own span to all; an empty
        # span sends nothing.
        inner = (
            route.sent_messages(inner_codec, spec, inside)
            if inner_codec
            else full - (own.numel > 0)
        )
        outer = self.outer.sent_messages(codec, own, across)
        return (
            None
            if inner is None or outer is None
            else inner + outer + (inside.world - 1) * (own.numel > 0)
        )

    def seconds(self, codec: Codec, spec: Spec, ctx: RankContext, link: Link) -> float:
        inside, across = self._contexts(ctx)
        route, inner_codec = self._inner
        fast, thin = link.inside or link, replace(link, inside=None)
        own = max(spec.cut(inside.world, codec.traits.grain), key=lambda span: span.numel)
        round_ = fast.seconds(*[own.numel * spec.dtype.itemsize] * (inside.world - 1))
        inner = route.seconds(inner_codec, spec, inside, fast) if inner_codec else round_
        return inner + self.outer.seconds(codec, own, across, thin) + round_

    def _contexts(self, ctx: RankContext) -> tuple[RankContext, RankContext]:
        """Return this rank within its node, and among its peers in the other nodes."""
        size = self.size
        first = ctx.group_rank // size * size
        return (
            replace(ctx.child("inner"), group=ctx.group[first : first + size]),
            replace(ctx.child("outer"), group=ctx.group[ctx.group_rank % size :: size]),
        )

    def _span(self, codec: Codec, spec: Spec, inside: RankContext) -> Spec:
        return spec.cut(inside.world, codec.traits.grain)[inside.group_rank]


def _scattered(
    spans_of_x: dict[int, Tensor], own: Spec, inside: RankContext
) -> Generator[Exchange, dict[int, Tensor], Tensor]:
    """Return the node's sum of this rank's span.

    Each rank sends the others their spans, and adds what it receives in the order of ranks.
    """
    there = {rank: reference.as_bytes(piece.to(own.dtype)) for rank, piece in spans_of_x.items()}
    nbytes = own.numel * own.dtype.itemsize
    send = tuple((rank, there[rank]) for rank in inside.others)
    received = yield Exchange(send, tuple((rank, nbytes) for rank in reversed(inside.others)))
    received = received | {inside.rank: there[inside.rank]}
    first, *others = (reference.from_bytes(received[rank], own.dtype) for rank in inside.group)
    # Add in float32 (float64), in the order of ranks.
    total = first.to(own.work, copy=True)
    for each in others:
        total += each
    return total


def _numbered(within: Iterable[Ranks], groups: Iterable[Ranks]) -> list[Ranks]:
    """Return groups of group ranks, in each of several groups of ranks."""
    several = tuple(within)
    return [tuple(group[number] for number in each) for group in groups for each in several]
