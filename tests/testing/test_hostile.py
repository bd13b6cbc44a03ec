"""Codecs that mishandle numbers that are none, or bytes that are not their own: each breaks one
law."""

from __future__ import annotations

import re

import pytest
import torch
from torch import Tensor

from thinwire.core import Codec, Leaf, RankContext, Rounds, Spec, State
from thinwire.errors import PayloadError
from thinwire.testing.cases import specs
from thinwire.testing.hostile import check_bytes, check_non_finite
from thinwire.what import cast, feedback, identity, topk, uniform


class _PoisonsItsResidual(feedback):
    def rounds(self, x: Tensor, spec: Spec, state: State, ctx: RankContext) -> Rounds:
        y = x.to(spec.work) + state["residual"].value
        outcome = yield from super().rounds(x, spec, state, ctx)
        assert outcome.sent
        state["residual"].value = y - outcome.sent()
        return outcome


class _HidesNaN(uniform):
    def encode(self, x: Tensor, spec: Spec, state: State, ctx: RankContext) -> Tensor:
        return super().encode(x.nan_to_num(0, 0, 0), spec, state, ctx)


class _TakesAnyLength(cast):
    def decode(
        self, payload: Tensor, spec: Spec, state: State, ctx: RankContext, sender: int
    ) -> Tensor:
        whole = torch.zeros(2 * spec.numel, dtype=torch.uint8)
        whole[: payload.numel()] = payload[: 2 * spec.numel]
        return super().decode(whole, spec, state, ctx, sender)


class _TrustsPlaces(topk):
    def join(
        self, core: Tensor, side: Tensor, spec: Spec, state: State, ctx: RankContext, sender: int
    ) -> Tensor:
        try:
            return super().join(core, side, spec, state, ctx, sender)
        except PayloadError:
            return core[core.numel() :][
                0
            ]  # an IndexError, as from a place that nobody has looked at


class _DecodesLessIfItMust(cast):
    def decode(
        self, payload: Tensor, spec: Spec, state: State, ctx: RankContext, sender: int
    ) -> Tensor:
        values = super().decode(payload, spec, state, ctx, sender)
        return values[:1] if (payload == 255).all() and spec.numel else values


class _GarblesOtherBlocks(uniform):
    def encode(self, x: Tensor, spec: Spec, state: State, ctx: RankContext) -> Tensor:
        return super().encode(x if x.isfinite().all() else x + 1000, spec, state, ctx)


class _RemembersNaN(cast):
    def init(self, spec: Spec, ctx: RankContext) -> State:
        return State({"largest": Leaf(torch.zeros(()), "private")})

    def encode(self, x: Tensor, spec: Spec, state: State, ctx: RankContext) -> Tensor:
        state["largest"].value = torch.maximum(
            state["largest"].value, x.abs().amax() if spec.numel else torch.zeros(())
        )
        return super().encode(x + 0 * state["largest"].value, spec, state, ctx)


NON_FINITE: list[tuple[Codec, str]] = [
    (_HidesNaN(), "a non-finite value arrives"),
    (_GarblesOtherBlocks(), "a non-finite value makes no finite garbage"),
    (_RemembersNaN(), "a non-finite value leaves no trace in the flights to come"),
    (_PoisonsItsResidual(topk(3)), "a non-finite value leaves its residual as it was"),
]
BYTES: list[tuple[Codec, str]] = [
    (_DecodesLessIfItMust(), "corrupted bytes decode to the right shape"),
    (_TakesAnyLength(), "a payload of the wrong length raises PayloadError"),
    (_TrustsPlaces(3), "corrupted bytes raise PayloadError or decode"),
]
BROKEN = NON_FINITE + BYTES


@pytest.mark.parametrize(("codec", "law"), NON_FINITE, ids=lambda x: type(x).__name__)
def test_a_codec_that_mishandles_what_is_not_finite_is_caught(codec: Codec, law: str) -> None:
    with pytest.raises(AssertionError, match=re.escape(f"breaks the law {law!r} on many parts")):
        check_non_finite(codec, codec.error_bound, specs()["many parts"])


@pytest.mark.parametrize(("codec", "law"), BYTES, ids=lambda x: type(x).__name__)
def test_a_codec_that_trusts_its_bytes_is_caught(codec: Codec, law: str) -> None:
    with pytest.raises(AssertionError, match=re.escape(f"breaks the law {law!r} on some case")):
        check_bytes(codec, specs()["many parts"], "some case")


@pytest.mark.parametrize("codec", [identity(), uniform(4), topk(3), feedback(topk(3))], ids=repr)
def test_a_codec_that_checks_both_passes(codec: Codec) -> None:
    for name in ("many parts", "one value"):
        check_bytes(codec, specs()[name], name)
    check_non_finite(codec, codec.error_bound, specs()["many parts"])
