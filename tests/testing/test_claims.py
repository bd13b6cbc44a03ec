"""A codec whose traits claim what it does not do is caught."""

from __future__ import annotations

from dataclasses import replace

import pytest
from torch import Tensor

from thinwire.core import Codec, RankContext, Spec, State, Traits
from thinwire.testing import check_codec
from thinwire.testing.cases import specs
from thinwire.testing.claims import check_divides, check_mean, check_rows, check_seeds
from thinwire.what import cast, feedback, topk, uniform


class _DrawsTheSameAlways(uniform):
    def encode(self, x: Tensor, spec: Spec, state: State, ctx: RankContext) -> Tensor:
        return super().encode(x, spec, state, replace(ctx, seed=0, step=0))


class _DrawsTheSameForAllSeeds(uniform):
    def encode(self, x: Tensor, spec: Spec, state: State, ctx: RankContext) -> Tensor:
        return super().encode(x, spec, state, replace(ctx, seed=0))


class _RoundsToNearestHalfTheTime(uniform):
    def encode(self, x: Tensor, spec: Spec, state: State, ctx: RankContext) -> Tensor:
        if (ctx.step + ctx.seed) % 2:
            return super().encode(x, spec, state, ctx)
        return uniform(self.bits, self.block).encode(x, spec, state, ctx)


class _SaysThatRowsAreAlone(uniform):
    traits = Traits(grain=1024, row_wise=True)  # type: ignore[assignment]


class _SaysThatItDivides(uniform):
    traits = Traits(divides=True)  # type: ignore[assignment]


BROKEN: list[tuple[Codec, str]] = [
    (_DrawsTheSameAlways(rounding="stochastic"), "another step draws other random numbers"),
    (_DrawsTheSameForAllSeeds(rounding="stochastic"), "another seed draws other random numbers"),
    (_RoundsToNearestHalfTheTime(2, rounding="stochastic"), "unbiased"),
    (_SaysThatRowsAreAlone(4), "a row depends on no other"),
    (_SaysThatItDivides(4, block=0), "a payload divides"),
]


@pytest.mark.parametrize(("codec", "law"), BROKEN, ids=lambda x: type(x).__name__)
def test_a_false_claim_is_caught(codec: Codec, law: str) -> None:
    with pytest.raises(AssertionError) as caught:
        check_codec(codec)
    assert f"breaks the law {law!r} on " in str(caught.value)
    assert str(caught.value).startswith(repr(codec))


def test_true_claims_pass() -> None:
    randomised = uniform(4, rounding="stochastic")
    check_seeds(randomised, specs()["many parts"])
    check_mean(randomised, randomised.error_bound, specs()["cut parts"])
    check_rows(cast())
    check_divides(cast(), specs()["many parts"])
    check_divides(feedback(uniform(4, block=32)), specs()["many parts"])


@pytest.mark.parametrize("codec", [uniform(4), topk(3)], ids=repr)
def test_what_draws_nothing_is_not_randomised(codec: Codec) -> None:
    with pytest.raises(AssertionError, match="another step draws other random numbers"):
        check_seeds(codec, specs()["many parts"])


def test_what_rounds_to_nearest_is_not_unbiased() -> None:
    with pytest.raises(AssertionError, match="unbiased"):
        check_mean(uniform(2), uniform(2).error_bound, specs()["cut parts"])
