import itertools
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.how.flights import bucket, contexts_of
from thinwire.core import Part, Spec, State
from thinwire.errors import PayloadError, StrategyError
from thinwire.how import gather, two_shot
from thinwire.models.gpt import GPT, GPTConfig
from thinwire.testing import contexts
from thinwire.what import budget, feedback, uniform

SEAT = contexts()[1]
ALL = (0, 2, 3, 4, 5, 6, 7, 8)


def span(*sizes: int, dtype: torch.dtype = torch.float32) -> Spec:
    ends = list(itertools.accumulate(sizes))
    parts = tuple(
        Part(f"p{i}", (size,), end - size, "vector")
        for i, (size, end) in enumerate(zip(sizes, ends, strict=True))
    )
    return Spec(parts, 0, sum(sizes), dtype)


def normal(n: int, seed: int = 0) -> Tensor:
    return torch.randn(n, generator=torch.Generator().manual_seed(seed))


def scaled(spec: Spec, ratio: float, seed: int = 0) -> Tensor:
    """Normal draws; each parameter's are `ratio` times as large as the one's before."""
    x = normal(spec.numel, seed)
    for i, extent in enumerate(spec.extents()):
        x[extent.at : extent.at + extent.high - extent.low] *= ratio**i
    return x


def through(codec: Any, x: Tensor, spec: Spec, state: State | None = None, step: int = 0) -> Tensor:
    """What a rank that keeps no state hears."""
    payload = codec.encode(
        x, spec, codec.init(spec, SEAT) if state is None else state, contexts(step)[1]
    )
    assert payload.numel() == codec.nbytes(spec)
    return codec.decode(payload, spec, State(), contexts(step)[2], 1)  # type: ignore[no-any-return]


def error(codec: Any, x: Tensor, spec: Spec) -> float:
    return float((through(codec, x, spec).double() - x.double()).norm() / x.double().norm())


@given(
    sizes=st.lists(st.integers(1, 300), max_size=5),
    bits=st.integers(2, 8),
    block=st.integers(1, 40),
    blocks=st.integers(0, 4),
)
@settings(max_examples=50)
def test_bytes_are_those_of_uniform_and_half_a_byte_a_piece(
    sizes: list[int], bits: int, block: int, blocks: int
) -> None:
    runs = [run for size in sizes for run in _runs(size, blocks * block)]
    for itemsize, dtype in ((4, torch.float32), (4, torch.bfloat16), (8, torch.float64)):
        codes, steps = (
            sum(math.ceil(run * bits / 8) for run in runs),
            itemsize * sum(math.ceil(run / block) for run in runs),
        )
        assert budget(float(bits), per=blocks * block, block=block).nbytes(
            span(*sizes, dtype=dtype)
        ) == codes + steps + math.ceil(len(runs) / 2)


def _runs(size: int, per: int) -> list[int]:
    return [size] if not per else [min(per, size - at) for at in range(0, size, per)]


def test_bytes_of_a_broken_width() -> None:
    spec = span(4096, 4096)
    assert budget(3.0).nbytes(spec) == 3072 + 4 * 32 + 16
    assert budget(3.25).nbytes(spec) == 3072 + 256 + 4 * 32 + 16
    assert budget(3.9999, (3, 8)).nbytes(spec) == math.ceil(8192 * 3.9999 / 8) + 4 * 32 + 16


@given(
    sizes=st.lists(st.integers(1, 12), min_size=1, max_size=5),
    bits=st.integers(2, 8),
    block=st.sampled_from([8, 16, 32]),
    ratio=st.sampled_from([1.0, 0.5, 0.03, 1e-4]),
    power=st.sampled_from([1, 3]),
    per=st.sampled_from([0, 1, 3]),
    seed=st.integers(0, 99),
)
@settings(max_examples=80, deadline=None)
def test_the_error_is_never_above_that_of_uniform(
    sizes: list[int], bits: Any, block: int, ratio: float, power: int, per: int, seed: int
) -> None:
    spec = span(*(block * size for size in sizes))  # so that uniform's blocks are these
    x = scaled(spec, ratio, seed) ** power
    chosen, alike = budget(float(bits), per=per * block, block=block), uniform(bits, block)
    assert (
        chosen.nbytes(spec) - alike.nbytes(spec) <= (sum(sizes) + 1) // 2
    )  # of widths: half a byte a piece
    assert error(chosen, x, spec) <= error(alike, x, spec) * (1 + 1e-6)


@pytest.mark.parametrize(
    ("per", "choices", "gain"), [(256, ALL[1:], 12), (0, ALL[1:], 12), (256, ALL, 14)]
)
def test_tensors_of_very_different_scale_gain_much(
    per: int, choices: tuple[int, ...], gain: float
) -> None:
    spec = span(*[4096] * 6)
    x = scaled(spec, 0.1)
    assert error(uniform(4), x, spec) > gain * error(budget(4.0, choices, per=per), x, spec)


def test_the_gradient_of_a_small_gpt_gains() -> None:
    torch.manual_seed(0)
    config = GPTConfig(vocab=64, context=32, layers=2, heads=2, width=64)
    model, tokens = GPT(config), torch.randint(0, 64, (8, 33))
    model(tokens[:, :-1], tokens[:, 1:])[1].backward()
    grads = [param.grad.reshape(-1) for param in model.parameters() if param.grad is not None]
    spec, x = span(*map(len, grads)), torch.cat(grads)
    cases: list[tuple[Any, tuple[int, ...], float]] = [
        (4, ALL[1:], 1.8),
        (3, ALL[1:], 1.5),
        (2, ALL, 3),
    ]
    for bits, choices, gain in cases:
        codec = budget(float(bits), choices, per=64, block=64)
        assert error(uniform(bits, 64), x, spec) > gain * error(codec, x, spec)
        assert codec.nbytes(spec) < 1.03 * uniform(bits, 64).nbytes(spec)


def test_all_pieces_alike_are_said_alike() -> None:
    spec = span(1024)
    x = normal(256).repeat(4)
    assert budget(5.0).chosen(x, spec) == {"p0": 5.0}
    assert through(budget(5.0), x, spec).equal(through(uniform(5), x, spec))


def test_what_is_zero_pays_for_the_rest() -> None:
    spec = span(256, 256)
    x = torch.cat([torch.zeros(256), normal(256)])
    assert budget(4.0, ALL, per=0).chosen(x, spec) == {"p0": 0.0, "p1": 8.0}
    assert budget(5.0, per=0).chosen(x, spec) == {"p0": 2.0, "p1": 8.0}
    assert through(budget(4.0, ALL, per=0), x, spec)[256:].equal(through(uniform(8), x, spec)[256:])


def test_measured_errors_are_those_that_come() -> None:
    """The sum that is made least is the squared error itself, to nearest, and its mean at
    random."""
    spec, draws = span(2048), 200
    x = normal(2048) ** 3
    nearest = [error(uniform(b, 64), x, spec) for b in (2, 4, 8)]
    for bits, alone in zip((2.0, 4.0, 8.0), nearest, strict=True):
        assert error(budget(bits, (int(bits),), per=64, block=64), x, spec) == pytest.approx(
            alone, rel=1e-6
        )
    codec = budget(3.0, per=64, block=64, rounding="stochastic")
    other = uniform(3, 64, "stochastic")

    def mean(codec: Any) -> float:
        told = [
            float((through(codec, x, spec, step=step) - x).square().sum()) for step in range(draws)
        ]
        return sum(told) / draws

    assert mean(codec) < 0.75 * mean(other)


def test_widths_are_kept_between_choices_whatever_steps_are_flown() -> None:
    spec, codec = span(256, 256), budget(4.0, per=0, every=50)
    first, second = (
        torch.cat([normal(256), 0.01 * normal(256)]),
        torch.cat([0.01 * normal(256), normal(256)]),
    )
    state = codec.init(spec, SEAT)

    def widths(x: Tensor, step: int) -> list[int]:
        through(codec, x, spec, state, step)
        return state["widths"].value.tolist()

    high_low, low_high = (
        [int(b) for b in codec.chosen(first, spec).values()],
        [int(b) for b in codec.chosen(second, spec).values()],
    )
    assert high_low[0] > 4 > high_low[1]
    assert widths(first, 25) == high_low
    assert widths(second, 26) == widths(second, 49) == high_low  # kept
    assert (
        widths(second, 75) == low_high
    )  # a new fifty steps, though no flight falls on a multiple of 50
    assert widths(first, 99) == low_high
    assert widths(first, 125) == high_low


def test_kept_widths_travel() -> None:
    """A rank that joins late, or has widths of its own, reads the same values."""
    spec, codec = span(512, 512), budget(3.0, ALL, every=100)
    state, other = codec.init(spec, SEAT), codec.init(spec, SEAT)
    through(codec, scaled(spec, 0.01), spec, state, 0)
    through(codec, scaled(spec, 100.0), spec, other, 0)
    assert state["widths"].value.tolist() != other["widths"].value.tolist()
    x = scaled(spec, 100.0)
    payload = codec.encode(x, spec, state, contexts(1)[1])
    told = [
        codec.decode(payload.clone(), spec, each, contexts(1)[2], 1)
        for each in (state, other, State())
    ]
    assert told[0].equal(told[1])
    assert told[0].equal(told[2])
    assert (told[0] - x).norm() > (
        through(codec, x, spec, other, 1) - x
    ).norm()  # they are of another x


def test_kept_widths_leave_out_nothing_that_is_not_finite() -> None:
    spec, codec = span(256, 256), budget(4.0, ALL, per=0, every=100)
    state, x = codec.init(spec, SEAT), torch.cat([normal(256), torch.zeros(256)])
    assert through(codec, x, spec, state, 0).isfinite().all()
    x[300] = float("inf")
    assert through(codec, x, spec, state, 1)[256:].isnan().all()


def test_a_bad_value_spoils_its_block_and_no_other() -> None:
    spec = span(12)
    for bad in (float("nan"), float("inf"), -float("inf")):
        x = torch.ones(12)
        x[5] = bad
        for codec in (budget(4.0, per=4, block=4), budget(1.0, (0, 8), per=4, block=4)):
            told = through(codec, x, spec)
            assert told[4:8].isnan().all()
            assert told[:4].isfinite().all()
            assert told[8:].isfinite().all()


def test_nothing_of_a_span_is_nothing() -> None:
    assert through(budget(), torch.zeros(0), span()).numel() == 0
    assert budget().nbytes(span()) == 0


def test_a_least_budget_says_the_largest_piece_at_all() -> None:
    spec = span(1000, 10)
    codec = budget(0.01, ALL, per=0, block=100)
    assert codec.nbytes(spec) == 1 + 250 + 40
    assert codec.chosen(scaled(spec, 1e-3), spec)["p0"] == 2


@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_width_that_is_no_choice_is_refused(place: int) -> None:
    spec, codec = span(256 * 6), budget(4.0, (2, 4, 8))
    payload = codec.encode(normal(spec.numel), spec, State(), SEAT)
    payload[place] = 0x54  # 4 bits, then 5
    with pytest.raises(PayloadError, match="a width of 5 bits"):
        codec.decode(payload, spec, State(), SEAT, 1)


def test_widths_beyond_the_budget_are_refused() -> None:
    spec, codec = span(256 * 6), budget(4.0)
    payload = codec.encode(normal(spec.numel), spec, State(), SEAT)
    payload[:3] = 0x88
    with pytest.raises(PayloadError, match="come to 1560 bytes of 792"):
        codec.decode(payload, spec, State(), SEAT, 1)


@pytest.mark.parametrize("change", [-1, 1, -700])
def test_a_payload_of_another_length_is_refused(change: int) -> None:
    spec, codec = span(256 * 6), budget(4.0)
    payload = codec.encode(normal(spec.numel), spec, State(), SEAT)
    wrong = payload[:change] if change < 0 else torch.cat([payload, payload[:change]])
    with pytest.raises(PayloadError, match="795 were due"):
        codec.decode(wrong, spec, State(), SEAT, 1)


def test_what_is_left_out_needs_a_way_back() -> None:
    assert not budget().traits.drops
    assert budget(choices=ALL).traits.drops
    assert two_shot().refuses(budget(choices=ALL))
    assert not two_shot().refuses(budget())
    assert not two_shot(back=feedback(uniform(4))).refuses(feedback(budget(choices=ALL)))
    assert not gather().refuses(budget(choices=ALL))


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"choices": ()}, "choose of 0 and 2 to 8"),
        ({"choices": (4, 2, 8)}, "ascending"),
        ({"choices": (2, 2, 8)}, "ascending"),
        ({"choices": (1, 2, 8)}, "1 bit has no level for zero"),
        ({"choices": (2, 9)}, "choose of 0 and 2 to 8"),
        ({"choices": (0,), "bits": 0}, "nothing would ever be sent"),
        ({"bits": 1.0}, "at least 2"),
        ({"bits": 8.5}, "at most 8"),
        ({"bits": float("nan")}, "the mean width is"),
        ({"bits": 0.0, "choices": (0, 2)}, "more than 0"),
        ({"bits": 5, "choices": (2, 4)}, "at most 4"),
        ({"block": 0}, "at least 1 value"),
        ({"per": 100}, "whole blocks, or 0"),
        ({"per": -256}, "whole blocks, or 0"),
        ({"rounding": "up"}, "choose 'nearest' or 'stochastic'"),
        ({"every": 0}, "at least 1"),
    ],
)
def test_a_wrong_argument_is_refused(settings: dict[str, Any], told: str) -> None:
    with pytest.raises(StrategyError, match=told):
        budget(**settings)


def test_all_wrong_arguments_are_told_at_once() -> None:
    with pytest.raises(StrategyError) as caught:
        budget(bits=9, per=7, rounding="up", every=0)  # type: ignore[arg-type]
    assert len(caught.value.reasons) == 4


def test_a_sum_has_widths_of_its_own_though_widths_are_kept() -> None:
    codec, spec = budget(3.0, every=5), bucket(4096)
    ctx = contexts_of(1)[0]
    state = codec.init(spec, ctx)
    mine = torch.cat([torch.randn(2048) * 10, torch.randn(2048) * 0.01])
    theirs = mine.flip(0)
    codec.encode(mine, spec, state, ctx)
    kept = state["widths"].value.clone()
    back = ctx.child("back")
    heard = codec.decode(
        codec.encode(theirs, spec, state, back), spec, codec.init(spec, ctx), back, 0
    )
    alone = budget(3.0)
    best = alone.decode(
        alone.encode(theirs, spec, alone.init(spec, back), back),
        spec,
        alone.init(spec, back),
        back,
        0,
    )
    assert (heard - theirs).norm() == pytest.approx(float((best - theirs).norm()), rel=1e-6)
    assert torch.equal(state["widths"].value, kept), (
        "those of the rank's own contribution are as they were"
    )


@pytest.mark.parametrize("bits", [0.25, 0.5, 1.0, 2.0])
def test_a_budget_hides_no_nan_though_it_cannot_say_all(bits: float) -> None:
    codec, spec, ctx = budget(bits, choices=(0, 2, 3, 4)), bucket(8192), contexts_of(1)[0]
    for lost in (slice(None), slice(5000, 5001)):
        x = torch.randn(8192)
        x[lost] = float("nan")
        heard = codec.decode(
            codec.encode(x, spec, codec.init(spec, ctx), ctx),
            spec,
            codec.init(spec, ctx),
            ctx,
            0,
        )
        assert not heard.isfinite().all()
