import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from thinwire.core import Codec, Coder, Outcome, Part, Spec, State
from thinwire.errors import StrategyError
from thinwire.how import gather, hierarchical, native, two_shot
from thinwire.on import parameters
from thinwire.strategy import Strategy
from thinwire.testing import check_route, contexts
from thinwire.what import (
    cast,
    clip,
    dgc,
    ef21,
    feedback,
    identity,
    lowrank,
    sampled,
    threshold,
    topk,
    uniform,
)

SPEC = Spec((Part("w", (10, 5), 0, "matrix"), Part("b", (10,), 50, "vector")), 0, 60, torch.float32)
SEAT = contexts(group=(0,))[0]


def fly(codec: Codec, x: Tensor, state: State, step: int = 0, spec: Spec = SPEC) -> Outcome:
    """One flight of one rank alone."""
    flow = codec.rounds(x, spec, state, replace(SEAT, step=step))
    try:
        packet = next(flow)
        while True:
            packet = flow.send(packet.open(packet.payload.clone(), 0))
    except StopIteration as stop:
        return stop.value  # type: ignore[no-any-return]


def fresh(codec: Codec, spec: Spec = SPEC) -> State:
    return codec.init(spec, SEAT)


def normal(seed: int, scale: float = 1.0) -> Tensor:
    return torch.randn(60, generator=torch.Generator().manual_seed(seed)) * scale


@given(seed=st.integers(0, 2**32), norm=st.floats(1e-3, 1e3), per=st.sampled_from(["part", "span"]))
def test_what_is_too_long_is_scaled_to_the_bound_and_what_is_not_passes_bit_for_bit(
    seed: int, norm: float, per: str
) -> None:
    codec = clip(identity(), norm=norm, per=per)  # type: ignore[arg-type]
    x = normal(seed)
    total = fly(codec, x, fresh(codec)).total
    for run in (slice(0, 50), slice(50, 60)) if per == "part" else (slice(0, 60),):
        length = float(x[run].double().norm())
        if length <= norm:
            assert torch.equal(total[run], x[run])
        else:
            assert float(total[run].double().norm()) == pytest.approx(norm, rel=1e-6)
            assert torch.allclose(total[run] * (length / norm), x[run], rtol=1e-5)


@pytest.mark.parametrize(
    "inner",
    [
        topk(0.2),
        uniform(4),
        cast(),
        lowrank(2),
        sampled(0.2),
        threshold(0.1),
        topk(5) >> uniform(4),
    ],
    ids=repr,
)
def test_the_inner_codec_says_of_the_clipped_what_it_would_say_alone(inner: Codec) -> None:
    codec, x = clip(inner, norm=1.0), normal(0)
    clipped = torch.cat(
        [x[:50] * (1 / x[:50].double().norm()), x[50:] * (1 / x[50:].double().norm())]
    )
    alone, got = fly(inner, clipped, fresh(inner)), fly(codec, x, fresh(codec))
    assert torch.equal(got.total, alone.total)
    assert got.sent is not None
    assert alone.sent is not None
    assert torch.equal(got.sent(), alone.sent())


def test_the_bound_follows_the_median_of_the_last_norms_as_they_were_before_clipping() -> None:
    codec = clip(identity(), times=2.0, window=3, per="span")
    state, heard = fresh(codec), []
    unit = torch.zeros(60)
    unit[7] = 1.0
    for step, length in enumerate([1.0, 5.0, 2.0, 100.0, 0.0, math.inf, 100.0, 100.0, 90.0]):
        heard.append(float(fly(codec, unit * length, state, step).total[7]))
    # 1 5 2 pass; 100 is cut to 2 · 2; 0 and inf are said and not counted; then the medians are 5,
    # 100, 100
    assert heard == [1.0, 5.0, 2.0, 4.0, 0.0, math.inf, 10.0, 100.0, 90.0]
    assert state["norms"].value.tolist() == [[100.0, 100.0, 90.0]]


def test_each_part_has_its_own_window() -> None:
    codec = clip(identity(), times=1.0, window=1)
    state = fresh(codec)
    fly(codec, torch.ones(60), state)
    x = torch.ones(60)
    x[50:] = 3.0
    total = fly(codec, x, state, 1).total
    assert torch.equal(total[:50], x[:50])
    assert torch.allclose(total[50:], torch.ones(10))
    leaf = state["norms"]
    assert (leaf.kind, leaf.spec, leaf.part, leaf.value.dtype) == (
        "private",
        None,
        "w@0",
        torch.float64,
    )
    assert leaf.value.tolist() == [[pytest.approx(50**0.5)], [pytest.approx(3 * 10**0.5)]]


def test_before_feedback_an_outlier_is_gone_and_behind_it_it_waits() -> None:
    outlier, silence = torch.zeros(60), torch.zeros(60)
    outlier[3] = 10.0
    gone, waits = clip(feedback(topk(1)), norm=1.0), feedback(clip(topk(1), norm=1.0))
    heard = {}
    for codec in (gone, waits):
        state = fresh(codec)
        heard[codec] = [
            float(fly(codec, x, state, step).total[3])
            for step, x in enumerate([outlier] + [silence] * 11)
        ]
    assert heard[gone] == [1.0] + [0.0] * 11
    assert heard[waits] == pytest.approx([1.0] * 10 + [0.0] * 2, abs=1e-5)


@given(
    seed=st.integers(0, 2**32),
    flights=st.integers(1, 8),
    inner=st.sampled_from([topk(3), uniform(3), identity(), lowrank(1)]),
)
def test_behind_feedback_nothing_is_lost(seed: int, flights: int, inner: Codec) -> None:
    codec = feedback(clip(inner, norm=2.0))
    state = fresh(codec)
    said, heard = torch.zeros(60), torch.zeros(60)
    for step in range(flights):
        x = normal(seed + step)
        said, heard = said + x, heard + fly(codec, x, state, step).total
    assert torch.allclose(heard + state["residual"].flat, said, atol=1e-4)
    assert float(state["residual"].flat.norm()) > 0.5


def test_before_dgc_it_is_local_gradient_clipping() -> None:
    """Lin et al. 2018, section 3.2: what is added to the velocity has a norm of B / sqrt(K) at
    most."""
    bound, world = 3.0, 4
    codec = clip(dgc(topk(1), mask=False), norm=bound / world**0.5, per="span")
    state, before = fresh(codec), torch.zeros(60)
    for step in range(4):
        fly(codec, normal(step), state, step)
        velocity = state.child("inner")["velocity"].value
        assert float((velocity - 0.9 * before).norm()) == pytest.approx(1.5, rel=1e-5)
        before = velocity


def test_within_ef21_it_is_clip21() -> None:
    """Khirirat et al. 2023: h <- h + clip(x - h), so h of an x that stands still moves by the bound
    and ends at x."""
    codec, x = ef21(clip(identity(), norm=1.0, per="span")), normal(0)
    state, h = fresh(codec), torch.zeros(60)
    for step in range(12):
        total = fly(codec, x, state, step).total
        d = x - h
        h = h + d / max(1.0, float(d.norm()))
        assert torch.allclose(total, h, atol=1e-5)
    assert torch.allclose(h, x)


@pytest.mark.parametrize("scale", [1e-30, 1e-22, 1e18, 1e30])
def test_squares_neither_vanish_nor_overflow(scale: float) -> None:
    codec = clip(identity(), norm=scale, per="span")
    assert float(fly(codec, normal(0, scale), fresh(codec)).total.double().norm()) == pytest.approx(
        scale, rel=1e-6
    )
    wide = replace(SPEC, dtype=torch.float64)
    huge = clip(identity(), norm=scale**8, per="span")
    x = normal(0).double() * scale**8
    assert float(
        (fly(huge, x, fresh(huge, wide), spec=wide).total / scale**8).norm()
    ) == pytest.approx(1.0, rel=1e-12)


def test_values_of_16_bits_are_measured_in_32() -> None:
    narrow = replace(SPEC, dtype=torch.bfloat16)
    codec, x = clip(topk(1.0), norm=1.0, per="span"), normal(0).bfloat16()
    total = fly(codec, x, fresh(codec, narrow), spec=narrow).total
    assert torch.allclose(total, x.float() / x.float().norm(), rtol=1e-6)


def test_routes_may_cut_between_parts_only_unless_spans_are_bounded() -> None:
    assert clip(topk(3, per=8), norm=1.0).traits.grain == "part"
    assert clip(topk(3, per=8), norm=1.0, per="span").traits.grain == topk(3, per=8).traits.grain
    assert clip(lowrank(1), norm=1.0, per="span").traits.grain == "part"


def test_it_hands_on_what_the_inner_codec_is() -> None:
    for inner in (identity(), topk(3), uniform(4), lowrank(2), feedback(topk(3))):
        codec = clip(inner, norm=1.0)
        assert (codec.traits.summable, codec.traits.drops, codec.single_packet_coder) == (
            inner.traits.summable,
            inner.traits.drops,
            inner.single_packet_coder,
        )
        assert (codec.nbytes(SPEC), codec.max_nbytes(SPEC)) == (
            inner.nbytes(SPEC),
            inner.max_nbytes(SPEC),
        )
        assert codec.traits.lossy


@pytest.mark.parametrize(
    ("route", "codec"),
    [
        (native(), clip(identity(), norm=1.0)),
        (gather(), feedback(clip(identity(), norm=1.0))),
        (gather(), clip(feedback(topk(0.1), store="int8"), times=1.0, window=2)),
        (two_shot(), clip(uniform(4), times=0.5, window=1)),
        (
            two_shot(back=clip(feedback(uniform(4)), norm=5.0)),
            clip(feedback(uniform(4)), norm=2.0, per="span"),
        ),
        (hierarchical(native(), gather(), node=2), clip(feedback(topk(0.1)), norm=1.0)),
    ],
    ids=repr,
)
def test_on_every_route(route, codec) -> None:  # type: ignore[no-untyped-def]
    check_route(route, codec, worlds=[2, 4])


def test_its_repr_makes_it_and_says_only_what_was_set() -> None:
    assert repr(clip(topk(3), norm=0.5)) == "clip(inner=topk(k=3, per=0), norm=0.5)"
    for codec in (
        clip(topk(3), norm=0.5, per="span"),
        clip(topk(3), times=2.0),
        clip(topk(3), times=2.0, window=4),
    ):
        assert eval(repr(codec), {"clip": clip, "topk": topk}) == codec
        strategy = Strategy(what=codec, how=gather())
        assert Strategy.from_toml(strategy.to_toml()) == strategy


def test_all_wrong_arguments_are_told_at_once() -> None:
    with pytest.raises(StrategyError) as caught:
        clip(topk(3), norm=0.0, times=math.inf, window=0, per="row")  # type: ignore[arg-type]
    assert len(caught.value.reasons) == 5
    with pytest.raises(StrategyError, match="give norm= or times=, not neither"):
        clip(topk(3))
    with pytest.raises(StrategyError, match="only times= has a window"):
        clip(topk(3), norm=1.0, window=8)


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(StrategyError, match="must be stateless"):
        topk(3) >> clip(cast(), norm=1.0)
    with pytest.raises(StrategyError, match="would be written into the weights"):
        Strategy(what=clip(identity(), norm=1.0), on=parameters())
    with pytest.raises(StrategyError, match="would count a loss twice"):
        feedback(clip(feedback(topk(3)), norm=1.0))
    assert not isinstance(clip(cast(), norm=1.0), Coder)
