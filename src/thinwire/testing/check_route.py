"""Check the laws of every route, with a codec on board."""

from __future__ import annotations

import copy
import zlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cache

import torch
from torch import Tensor

from thinwire.core import (
    AllReduce,
    Codec,
    Flight,
    Hop,
    Outcome,
    RankContext,
    Ranks,
    Route,
    Spec,
    State,
    allreduce_messages,
)
from thinwire.core.component import inside
from thinwire.drive.local import run
from thinwire.errors import StrategyError
from thinwire.testing.cases import contexts, inputs, require, same, specs
from thinwire.testing.residuals import Bound
from thinwire.testing.rounds import relayed

_BUCKETS = ("many parts", "cut parts", "three values", "one value", "an empty span", "bfloat16")
_PATTERNS = ("normal", "wide dtype", "zeros", "half of the ranks")


def check_route(
    route: Route,
    codec: Codec,
    *,
    worlds: Iterable[int] = range(1, 10),
    error_bound: Bound | None = None,
    every_bucket: bool = True,
) -> None:
    """Try every law of a route on worlds of several sizes, several buckets and several flights of
    each, with state.

    Laws: the total is the sum of the contributions (so, of contributions scaled by their share of
    the weights, the pooled mean), within what codec and route may lose (where not `consensus`, the
    mean over ranks of their totals is); what the ranks `sent` adds up to it; every rank ends with
    the same bits where `consensus`; each rank hands `sent_nbytes` bytes to the wire, in
    `sent_messages` messages; the order in which ranks come does not matter; every subset that it
    all-reduces over stands in `groups(world)`; nobody waits for what nobody sends, also where there
    is nothing to say.

    Args:
        route: the component.
        codec: what it carries.
        worlds: sizes to try; those that `groups` refuses are left out.
        error_bound: as for `check_codec`; known for Thinwire's own codecs.
        every_bucket: whether all buckets fly; else the first and one more, chosen by the codec's
            repr. It takes a third of the time.

    Raises:
        AssertionError: a law is broken; it names the law, the component, the codec, the world and
            the bucket.
        FlightError: the ranks wait for what nobody sends, or sizes do not match.
        StrategyError: the route refuses the codec, or every world.
        TypeError: no error bound is known for this codec.

    Example:
        >>> from thinwire.how import gather
        >>> from thinwire.what import topk
        >>> check_route(gather(), topk(0.1), worlds=[1, 3])
    """
    refusal = route.refuses(codec)
    if refusal:
        raise StrategyError(refusal)
    refused: list[str] = []
    served = False
    # Worlds that the route refuses are skipped; one at least must be served.
    for world in worlds:
        try:
            groups = route.groups(world)
        except StrategyError as error:
            refused.extend(error.reasons)
            continue
        served = True
        for name in _BUCKETS if every_bucket else _two_buckets(codec):
            case = f"{world} ranks, {name}, {codec!r}"
            _Bucket(
                route, codec, error_bound, specs()[name], tuple(range(world)), groups, case
            ).fly()
    if not served:
        raise StrategyError(refused or "no world was given")


def _two_buckets(codec: Codec) -> tuple[str, str]:
    others = _BUCKETS[1:]
    return _BUCKETS[0], others[zlib.crc32(repr(codec).encode()) % len(others)]


@cache  # the same for every codec and route; contributions are made of them, never written into
def _inputs(spec: Spec, rank: int) -> dict[str, Tensor]:
    return inputs(spec, rank)


def _copy(state: State) -> State:
    """Copy a state and its tensors; what leaves say of themselves never changes."""
    leaves = {name: copy.copy(leaf) for name, leaf in state.leaves.items()}
    for leaf in leaves.values():
        leaf.value = leaf.value.clone()
    return State(leaves, {name: _copy(child) for name, child in state.children.items()})


@dataclass
class _Bucket:
    """One bucket in one world, and its flights."""

    route: Route
    codec: Codec
    error_bound: Bound | None
    spec: Spec
    group: Ranks
    groups: tuple[Ranks, ...]
    case: str
    eps: float = 0.0
    """The coarsest rounding of a sum seen so far."""
    messages: dict[int, float] = field(default_factory=dict)
    """What each rank has sent in this flight."""

    def fly(self) -> None:
        self.eps = max(torch.finfo(self.spec.dtype).eps, _eps_of_sums(self.codec, self.spec))
        states = {
            rank: self.route.init(self.codec, self.spec, ctx)
            for rank, ctx in contexts(0, 0, self.group).items()
        }
        for step, pattern in enumerate(_PATTERNS):
            self._flight(states, step, pattern)

    def _flight(self, states: dict[int, State], step: int, pattern: str) -> None:
        # 1. Contributions, and copies of the states for the run in reverse order.
        case = f"{self.case}, flight {step} ({pattern})"
        at = contexts(step, 0, self.group)
        xs = self._contributions(pattern)
        held = _largest_residual(states)
        backwards = {rank: _copy(state) for rank, state in states.items()} if step % 2 else {}

        # 2. Fly, watching every hop; then again with the ranks in reverse.
        sent: dict[int, float] = {}
        self.messages = dict.fromkeys(self.group, 0.0)
        outcomes = run(
            {
                rank: self._watched(self._launch(xs, states, at, rank), rank, case)
                for rank in self.group
            },
            sent,
        )
        if step % 2:
            late = run(
                {rank: self._launch(xs, backwards, at, rank) for rank in self.group},
                order=self.group[::-1],
            )
            unmoved = all(same(outcomes[rank].total, late[rank].total) for rank in self.group)
            require(
                unmoved,
                self.route,
                "the order in which ranks come does not matter",
                case,
                "a rank ends with other bits",
            )

        # 3. The laws of each rank, then of all.
        for rank, outcome in outcomes.items():
            total = outcome.total
            right = total.shape == (self.spec.numel,) and total.dtype == self.spec.work
            require(
                right,
                self.route,
                "the total is flat, in the work dtype",
                case,
                f"it is {tuple(total.shape)} {total.dtype}",
            )
            alike = not self.route.consensus or same(total, outcomes[0].total)
            require(
                alike,
                self.route,
                "every rank ends with the same bits",
                case,
                f"rank {rank} and rank 0 do not",
            )
            self._bytes(sent[rank], at[rank], case)
        self._near(xs, outcomes, held, case)

    def _contributions(self, pattern: str) -> dict[int, Tensor]:
        """Return each rank's values times its share of uneven weights."""
        total = sum(range(1, len(self.group) + 1))
        xs = {}
        for rank in self.group:
            quiet = pattern == "half of the ranks" and rank % 2
            values = _inputs(self.spec, rank)
            x = values["zeros"] if quiet else values.get(pattern, values["normal"])
            xs[rank] = (x.double() * (rank + 1) / total).to(x.dtype)
        return xs

    def _launch(
        self, xs: dict[int, Tensor], states: dict[int, State], at: dict[int, RankContext], rank: int
    ) -> Flight[Outcome]:
        return self.route.carry(self.codec, xs[rank].clone(), self.spec, states[rank], at[rank])

    def _watched(self, flight: Flight[Outcome], rank: int, case: str) -> Flight[Outcome]:
        """Return the same flight, with its hops inspected."""

        def looked_at(hop: Hop) -> Hop:
            self._check_hop(hop, rank, case)
            return hop

        return relayed(flight, looked_at)

    def _check_hop(self, hop: Hop, rank: int, case: str) -> None:
        if isinstance(hop, AllReduce):
            self.eps = max(self.eps, torch.finfo(hop.tensor.dtype).eps)
            listed = hop.group == self.group or hop.group in self.groups
            require(
                listed,
                self.route,
                "groups(world) holds every subset that it all-reduces over",
                case,
                f"{hop.group} is not there",
            )
            require(
                rank in hop.group,
                self.route,
                "a rank all-reduces with its own group",
                case,
                f"rank {rank} over {hop.group}",
            )
            self.messages[rank] += allreduce_messages(
                hop.tensor.numel() * hop.tensor.dtype.itemsize, len(hop.group)
            )
            return
        for peer, payload in hop.send:
            flat = payload.dtype == torch.uint8 and payload.dim() == 1 and payload.is_contiguous()
            require(
                flat,
                self.route,
                "what is exchanged is flat, contiguous bytes",
                case,
                f"{payload.dtype} {tuple(payload.shape)}",
            )
            require(
                peer in self.group and peer != rank,
                self.route,
                "a rank sends to others of its world",
                case,
                f"{rank} to {peer}",
            )
            self.messages[rank] += payload.numel() > 0

    def _bytes(self, sent: float, ctx: RankContext, case: str) -> None:
        stated = self.route.sent_nbytes(self.codec, self.spec, ctx)
        fits = stated is None or abs(sent - stated) <= 1e-9 * stated
        require(
            fits,
            self.route,
            "a rank hands sent_nbytes bytes to the wire",
            case,
            f"rank {ctx.rank} handed {sent:g}, stated {stated}",
        )
        # Messages are counted hop by hop; empty payloads are none.
        formula, count = (
            self.route.sent_messages(self.codec, self.spec, ctx),
            self.messages[ctx.rank],
        )
        require(
            formula in (None, count),
            self.route,
            "a rank sends sent_messages messages",
            case,
            f"rank {ctx.rank}: {count:g}, not {formula}",
        )

    def _near(
        self, xs: dict[int, Tensor], outcomes: dict[int, Outcome], held: float, case: str
    ) -> None:
        if not self.spec.numel:
            return
        world = len(self.group)
        exact = torch.stack([x.double() for x in xs.values()])
        size = float(exact.abs().sum(0).max()) + held * world
        size += world * self._most_lost(self.codec, size)  # what arrives may be as much larger
        rounding = 1e-6 * size if self.eps < 1e-6 else world * self.eps * size
        reencodes = self.route.reencodes(self.codec, world)
        brought = [component for component in inside(self.route) if isinstance(component, Codec)]
        own = self._most_lost(self.codec, size)
        lost = own * (world + reencodes) + sum(
            self._most_lost(codec, size) for codec in brought
        ) * (world + 1)
        total = outcomes[0].total.double()
        if not self.route.consensus:
            total = torch.stack([outcome.total.double() for outcome in outcomes.values()]).mean(0)
        off, room = float((total - exact.sum(0)).abs().max()), rounding + held * world + lost
        require(
            off <= room,
            self.route,
            "the total is the sum of the contributions"
            if self.route.consensus
            else "the mean over ranks of totals is the sum of contributions",
            case,
            f"it is off by {off:g}, allowed {room:g}",
        )
        if all(outcome.sent is not None for outcome in outcomes.values()):
            shares = torch.stack(
                [
                    outcome.sent().double()
                    for outcome in outcomes.values()
                    if outcome.sent is not None
                ]
            )
            off = float((total - shares.sum(0)).abs().max())
            second = (
                (sum(self._most_lost(codec, size) for codec in brought) + held)
                if brought
                else reencodes * own
            )
            require(
                off <= rounding + second,
                self.route,
                "what the ranks sent adds up to the total",
                case,
                f"it is off by {off:g}",
            )

    def _most_lost(self, codec: Codec, size: float) -> float:
        """Return the most that a codec may lose of one of these values, none of them larger than
        `size`."""
        n = self.spec.numel
        spread = (
            torch.arange(n) % 5 - 2
        ) / 2  # what fits a grid exactly would be allowed nothing, so equal values are not enough
        bell = torch.randn(n, generator=torch.Generator().manual_seed(0))
        shapes = (torch.ones(n), spread, bell / bell.abs().max(), torch.arange(n) == 0)
        loudest = [(shape.double() * size).to(self.spec.work) for shape in shapes]
        ctx = contexts(0, 0, self.group)[0]
        stated = self.error_bound if self.error_bound and codec is self.codec else codec.error_bound
        most = max(
            *(float(stated(x, self.spec, ctx).max()) for x in loudest),
            size if codec.traits.drops else 0.0,
        )
        return most + codec.traits.cuts * size


def _largest_residual(states: dict[int, State]) -> float:
    """Return the largest residual of the ranks' own, plus the largest of those of the second
    side."""
    leaves = [leaf for state in states.values() for _, leaf in state.walk() if leaf.value.numel()]
    own = max(
        (float(leaf.flat.abs().max()) for leaf in leaves if leaf.kind == "summed"), default=0.0
    )
    return own + max(
        (float(leaf.flat.abs().max()) for leaf in leaves if leaf.kind == "sharded"), default=0.0
    )


def _eps_of_sums(codec: Codec, spec: Spec) -> float:
    """Return the rounding of the narrowest numbers as which a codec's payloads are added
    unopened."""
    if not codec.traits.summable:
        return 0.0
    ctx = contexts(0, 0, (0,))[0]
    packet = next(
        codec.rounds(torch.zeros(spec.numel, dtype=spec.dtype), spec, codec.init(spec, ctx), ctx)
    )
    return max((torch.finfo(dtype).eps for _, dtype in packet.sums), default=0.0)
