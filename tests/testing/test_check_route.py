"""Each route here breaks one law, and the check must name that law."""

from __future__ import annotations

from itertools import count
from typing import Any

import pytest
import torch
from torch import Tensor

from thinwire.core import (
    AllReduce,
    Codec,
    Exchange,
    Flight,
    Outcome,
    RankContext,
    Ranks,
    Spec,
    State,
)
from thinwire.errors import FlightError, StrategyError
from thinwire.how import gather, gossip, hierarchical, native
from thinwire.kernels import reference
from thinwire.testing import check_route
from thinwire.what import identity, topk, uniform


class _OneRankDiffers(gather):
    def carry(
        self, codec: Codec, x: Tensor, spec: Spec, state: State, ctx: RankContext
    ) -> Flight[Outcome]:
        outcome = yield from super().carry(codec, x, spec, state, ctx)
        return Outcome(outcome.total + 1e-30 if ctx.rank == 1 else outcome.total, outcome.sent)


class _LeavesOneOut(gather):
    def carry(
        self, codec: Codec, x: Tensor, spec: Spec, state: State, ctx: RankContext
    ) -> Flight[Outcome]:
        return (
            yield from super().carry(
                codec, x if ctx.rank else torch.zeros_like(x), spec, state, ctx
            )
        )


class _GossipsTooMuch(gossip):
    def carry(
        self, codec: Codec, x: Tensor, spec: Spec, state: State, ctx: RankContext
    ) -> Flight[Outcome]:
        outcome = yield from super().carry(codec, x, spec, state, ctx)
        return Outcome(outcome.total * 1.5, outcome.sent)


class _LosesOnTheWay(gather):
    def carry(
        self, codec: Codec, x: Tensor, spec: Spec, state: State, ctx: RankContext
    ) -> Flight[Outcome]:
        outcome = yield from super().carry(codec, x, spec, state, ctx)
        return Outcome(outcome.total * 0.9, outcome.sent)


class _LiesAboutTheWire(gather):
    def sent_nbytes(self, codec: Codec, spec: Spec, ctx: RankContext) -> float:
        return 8.0


class _MiscountsMessages(gather):
    def sent_messages(self, codec: Codec, spec: Spec, ctx: RankContext) -> float:
        return 8.0


class _GoesByWhoComesFirst(gather):
    came = count()

    def carry(
        self, codec: Codec, x: Tensor, spec: Spec, state: State, ctx: RankContext
    ) -> Flight[Outcome]:
        late = next(self.came) % ctx.world == ctx.world - 1
        outcome = yield from super().carry(
            codec, x * (1 + 1e-7 * (late and ctx.rank == 0)), spec, state, ctx
        )
        return outcome


class _HidesItsGroups(hierarchical):
    def groups(self, world: int) -> tuple[Ranks, ...]:
        super().groups(world)
        return ()


class _WaitsForNobody(gather):
    def carry(
        self, codec: Codec, x: Tensor, spec: Spec, state: State, ctx: RankContext
    ) -> Flight[Outcome]:
        outcome = yield from super().carry(codec, x, spec, state, ctx)
        if ctx.rank == 0 and ctx.world > 1 and not outcome.total.any():
            yield Exchange((), ((1, 8),))
        return outcome


class _SendsNumbers(gather):
    def carry(
        self, codec: Codec, x: Tensor, spec: Spec, state: State, ctx: RankContext
    ) -> Flight[Outcome]:
        got = yield Exchange(
            tuple((rank, x) for rank in ctx.others),
            tuple((rank, x.numel()) for rank in ctx.others),
        )
        return Outcome(x + sum(got.values()))


class _EndsInAnotherDtype(gather):
    def carry(
        self, codec: Codec, x: Tensor, spec: Spec, state: State, ctx: RankContext
    ) -> Flight[Outcome]:
        outcome = yield from super().carry(codec, x, spec, state, ctx)
        return Outcome(outcome.total.double(), outcome.sent)


class _SendsToItself(gather):
    def carry(
        self, codec: Codec, x: Tensor, spec: Spec, state: State, ctx: RankContext
    ) -> Flight[Outcome]:
        yield Exchange(
            ((ctx.rank, reference.as_bytes(x)),), ((ctx.rank, x.numel() * x.dtype.itemsize),)
        )
        return Outcome(x)


class _ReducesForOthers(native):
    def carry(
        self, codec: Codec, x: Tensor, spec: Spec, state: State, ctx: RankContext
    ) -> Flight[Outcome]:
        yield AllReduce(x, tuple(rank for rank in ctx.group if rank != ctx.rank) or ctx.group)
        return Outcome(x)

    def groups(self, world: int) -> tuple[Ranks, ...]:
        return tuple(tuple(rank for rank in range(world) if rank != left) for left in range(world))


BROKEN: list[tuple[Any, Codec, str]] = [
    (_OneRankDiffers(), identity(), "every rank ends with the same bits"),
    (_LeavesOneOut(), identity(), "the total is the sum of the contributions"),
    (_GossipsTooMuch(), identity(), "the mean over ranks of totals is the sum of contributions"),
    (_LosesOnTheWay(), topk(0.1), "what the ranks sent adds up to the total"),
    (_LiesAboutTheWire(), identity(), "a rank hands sent_nbytes bytes to the wire"),
    (_MiscountsMessages(), identity(), "a rank sends sent_messages messages"),
    (_GoesByWhoComesFirst(), identity(), "the order in which ranks come does not matter"),
    (
        _HidesItsGroups(native(), native(), 2),
        identity(),
        "groups(world) holds every subset that it all-reduces over",
    ),
    (_SendsNumbers(), identity(), "what is exchanged is flat, contiguous bytes"),
    (_EndsInAnotherDtype(), identity(), "the total is flat, in the work dtype"),
    (_SendsToItself(), identity(), "a rank sends to others of its world"),
    (_ReducesForOthers(), identity(), "a rank all-reduces with its own group"),
]


@pytest.mark.parametrize(("route", "codec", "law"), BROKEN, ids=lambda x: type(x).__name__)
def test_a_broken_route_is_caught(route: Any, codec: Codec, law: str) -> None:
    with pytest.raises(AssertionError) as caught:
        check_route(route, codec, worlds=range(2, 6))
    assert f"breaks the law {law!r} on " in str(caught.value)
    assert repr(codec) in str(caught.value)


def test_a_route_that_hangs_is_caught() -> None:
    with pytest.raises(
        FlightError, match="no rank can go on: rank 0 waits in an exchange, for 8 bytes from rank 1"
    ):
        check_route(_WaitsForNobody(), identity(), worlds=[2])


def test_a_pair_or_a_world_that_the_route_refuses_is_no_pass() -> None:
    with pytest.raises(StrategyError, match="cannot be added unopened"):
        check_route(native(), uniform(4))
    with pytest.raises(StrategyError, match="a world of 3 ranks is no multiple of 2"):
        check_route(hierarchical(native(), native(), 2), identity(), worlds=[3])
    with pytest.raises(StrategyError, match="no world was given"):
        check_route(native(), identity(), worlds=[])
