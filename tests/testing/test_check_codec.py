"""Each codec here breaks one law, and the check must name that law."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from tests.cases import CODECS
from thinwire.core import (
    Codec,
    Coder,
    Outcome,
    RankContext,
    Rounds,
    Spec,
    State,
    Traits,
    check_nbytes,
    encode_packet,
)
from thinwire.how import gather
from thinwire.testing import check_codec, check_route
from thinwire.testing.cases import INPUTS, inputs, specs
from thinwire.testing.check_codec import _chosen
from thinwire.what import cast, feedback, identity, topk, uniform


class _PassesThrough(identity):
    traits = Traits(lossy=True)  # type: ignore[assignment]


class _LosesInSilence(cast):
    traits = Traits(lossy=False)  # type: ignore[assignment]


class _LiesAboutBytes(uniform):
    def nbytes(self, spec: Spec) -> int:
        return super().nbytes(spec) + (spec.numel > 0)

    def decode(
        self, payload: Tensor, spec: Spec, state: State, ctx: RankContext, sender: int
    ) -> Tensor:
        return uniform(self.bits, self.block).decode(payload, spec, state, ctx, sender)

    accumulate = Coder.accumulate
    fill = Coder.fill


class _LiesAboutItsFlight(cast):
    def rounds(self, x: Tensor, spec: Spec, state: State, ctx: RankContext) -> Rounds:
        return (yield from cast().rounds(x, spec, state, ctx))

    def nbytes(self, spec: Spec) -> int:
        return 3 * spec.numel


class _WritesIntoX(uniform):
    def encode(self, x: Tensor, spec: Spec, state: State, ctx: RankContext) -> Tensor:
        payload = super().encode(x, spec, state, ctx)
        x.zero_()
        return payload


class _WritesIntoState(feedback):
    def rounds(self, x: Tensor, spec: Spec, state: State, ctx: RankContext) -> Rounds:
        held = state["residual"].value
        outcome = yield from super().rounds(x, spec, state, ctx)
        held.copy_(state["residual"].value)
        state["residual"].value = held
        return outcome


class _ForgetsHalf(feedback):
    def rounds(self, x: Tensor, spec: Spec, state: State, ctx: RankContext) -> Rounds:
        outcome = yield from super().rounds(x, spec, state, ctx)
        state["residual"].value = state["residual"].value / 2
        return outcome


class _DrawsFromAnywhere(uniform):
    def encode(self, x: Tensor, spec: Spec, state: State, ctx: RankContext) -> Tensor:
        return super().encode(x, spec, state, replace(ctx, seed=int(torch.randint(1 << 30, ()))))


class _IsCoarse(uniform):
    def decode(
        self, payload: Tensor, spec: Spec, state: State, ctx: RankContext, sender: int
    ) -> Tensor:
        return super().decode(payload, spec, state, ctx, sender) * 1.1

    fill = Coder.fill


class _DecodesByWhoItIs(uniform):
    def decode(
        self, payload: Tensor, spec: Spec, state: State, ctx: RankContext, sender: int
    ) -> Tensor:
        return super().decode(payload, spec, state, ctx, sender) * (1 + 1e-3 * ctx.rank)

    fill = Coder.fill


class _FillsWithHalf(uniform):
    def fill(
        self, out: Tensor, payload: Tensor, spec: Spec, state: State, ctx: RankContext, sender: int
    ) -> None:
        super().fill(out, payload, spec, state, ctx, sender)
        out /= 2


class _DecodesToAnotherDtype(cast):
    def decode(
        self, payload: Tensor, spec: Spec, state: State, ctx: RankContext, sender: int
    ) -> Tensor:
        return super().decode(payload, spec, state, ctx, sender).double()


class _AddsWhatCannotBe(uniform):
    summable = True  # type: ignore[assignment]

    def sum_dtype(self, spec: Spec) -> torch.dtype:
        return torch.uint8


class _SaysNotWhatItSent(cast):
    def rounds(self, x: Tensor, spec: Spec, state: State, ctx: RankContext) -> Rounds:
        outcome = yield from super().rounds(x, spec, state, ctx)
        return Outcome(outcome.total)


class _SaysItSentAll(cast):
    def rounds(self, x: Tensor, spec: Spec, state: State, ctx: RankContext) -> Rounds:
        outcome = yield from super().rounds(x, spec, state, ctx)
        return Outcome(outcome.total, lambda: x.to(spec.work))


class _SaysItInTwoDimensions(cast):
    def encode(self, x: Tensor, spec: Spec, state: State, ctx: RankContext) -> Tensor:
        return super().encode(x, spec, state, ctx).view(-1, 2)


class _AddsOnlyHalf(cast):
    def rounds(self, x: Tensor, spec: Spec, state: State, ctx: RankContext) -> Rounds:
        flow = super().rounds(x, spec, state, ctx)
        half = replace(next(flow), sums=((2 * (spec.numel // 2), torch.bfloat16),))
        try:
            flow.send((yield half))
        except StopIteration as stop:
            return stop.value


class _TalksTwiceOnOneRank(cast):
    def rounds(self, x: Tensor, spec: Spec, state: State, ctx: RankContext) -> Rounds:
        if ctx.rank == 1:
            yield encode_packet(self, x, spec, state, ctx)
        return (yield from super().rounds(x, spec, state, ctx))


class _EndsByWhoItIs(cast):
    def rounds(self, x: Tensor, spec: Spec, state: State, ctx: RankContext) -> Rounds:
        outcome = yield from super().rounds(x, spec, state, ctx)
        return Outcome(outcome.total + (ctx.rank == 1) * 1e-6, outcome.sent)


class _EndsInTwoDimensions(cast):
    def rounds(self, x: Tensor, spec: Spec, state: State, ctx: RankContext) -> Rounds:
        outcome = yield from super().rounds(x, spec, state, ctx)
        return Outcome(outcome.total.view(1, -1), outcome.sent)


BROKEN: list[tuple[Codec, str]] = [
    (_SaysItInTwoDimensions(), "a payload is flat, contiguous bytes"),
    (_AddsOnlyHalf(), "sums cover the payload"),
    (_TalksTwiceOnOneRank(), "all ranks send as many packets"),
    (_EndsByWhoItIs(), "all ranks end with the same bits"),
    (_EndsInTwoDimensions(), "the total is flat, in the work dtype"),
    (_PassesThrough(), "what is lossy loses something"),
    (_LosesInSilence(), "what is lossless loses nothing"),
    (_LiesAboutBytes(), "a packet has the bytes that its coder states"),
    (_LiesAboutItsFlight(), "a flight has the bytes that nbytes states"),
    (_WritesIntoX(), "x stays as it is"),
    (_WritesIntoState(topk(3)), "state is replaced, never written into"),
    (_ForgetsHalf(topk(3)), "residual + sent = x + decay · old residual"),
    (_DrawsFromAnywhere(rounding="stochastic"), "the same step and seed give the same bytes"),
    (_IsCoarse(), "the error is within its bound"),
    (_DecodesByWhoItIs(), "all ranks open the same payloads to the same bits"),
    (_FillsWithHalf(), "`fill` writes the bits that `decode` returns"),
    (_DecodesToAnotherDtype(), "a packet decodes to its span, flat, in its work dtype"),
    (_AddsWhatCannotBe(), "a sum of payloads opens to the sum"),
    (_SaysNotWhatItSent(), "a lossy codec says what it sent"),
    (_SaysItSentAll(), "the sum over ranks of `sent` is the total"),
]


@pytest.mark.parametrize(("codec", "law"), BROKEN, ids=lambda x: type(x).__name__)
def test_a_broken_codec_is_caught(codec: Codec, law: str) -> None:
    with pytest.raises(AssertionError) as caught:
        check_codec(codec)
    assert f"breaks the law {law!r} on " in str(caught.value)
    assert str(caught.value).startswith(repr(codec))


@dataclass(frozen=True)
class _halves(Coder):
    """A newcomer's codec, known to nobody: every value as a multiple of 1/2, in one byte."""

    def nbytes(self, spec: Spec) -> int:
        return spec.numel

    def encode(self, x: Tensor, spec: Spec, state: State, ctx: RankContext) -> Tensor:
        codes = torch.where(
            x.isfinite(), (x.to(spec.work) * 2).round().clamp(-127, 127) + 127, 255.0
        )
        return codes.to(torch.uint8)

    def decode(
        self, payload: Tensor, spec: Spec, state: State, ctx: RankContext, sender: int
    ) -> Tensor:
        check_nbytes(self, payload, spec.numel)
        return torch.where(payload == 255, float("nan"), (payload.to(spec.work) - 127) / 2)


def quarter(x: Tensor, spec: Spec, ctx: RankContext) -> Tensor:
    """Half a step, or what is beyond the last level."""
    return (x.double().abs() - 63.5).clamp(min=0.25)


def test_a_newcomer_states_its_bound() -> None:
    check_codec(_halves(), error_bound=quarter)
    check_route(gather(), _halves(), worlds=[1, 3], error_bound=quarter)
    with pytest.raises(TypeError, match="give error_bound="):
        check_codec(_halves())
    with pytest.raises(TypeError, match="give error_bound="):
        check_route(gather(), _halves())


def test_what_a_newcomer_states_is_held_against_it() -> None:
    with pytest.raises(AssertionError, match="the error is within its bound"):
        check_codec(_halves(), error_bound=lambda *said: quarter(*said) * 0.9)
    with pytest.raises(AssertionError, match="unbiased"):
        check_codec(_halves(), error_bound=quarter, unbiased=True)
    with pytest.raises(AssertionError, match="another step draws other random numbers"):
        check_codec(_halves(), error_bound=quarter, randomised=True)


def test_codecs_together_see_all_values_on_all_spans() -> None:
    codecs = [codec for each in CODECS.values() for codec in each]
    for span in specs():
        chosen = [_chosen(codec, span) for codec in codecs]
        assert {len(each) for each in chosen} == {3}
        assert set.union(*chosen) == set(INPUTS) == set(inputs(specs()["one value"], 0))
