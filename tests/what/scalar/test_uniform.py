import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from thinwire.core import Codec, Spec, State
from thinwire.errors import StrategyError
from thinwire.how import two_shot
from thinwire.testing import check_route, contexts
from thinwire.what import uniform

SEAT = contexts()[1]


def through(codec: uniform, x: Tensor, rank: int = 1, step: int = 0) -> Tensor:
    spec, ctx = Spec((), 0, x.numel(), torch.float32), contexts(step)[rank]
    return codec.decode(codec.encode(x, spec, State(), ctx), spec, State(), SEAT, rank)


@given(n=st.integers(0, 300), bits=st.integers(2, 8), block=st.integers(0, 40), fixed=st.booleans())
def test_bytes_are_codes_and_one_step_a_block(n: int, bits: Any, block: int, fixed: bool) -> None:
    codec = uniform(bits, block, step=0.1 if fixed else None)
    blocks = 0 if fixed else math.ceil(n / (block or max(n, 1)))
    assert codec.nbytes(Spec((), 0, n, torch.float32)) == math.ceil(n * bits / 8) + 4 * blocks
    assert codec.nbytes(Spec((), 0, n, torch.float64)) == math.ceil(n * bits / 8) + 8 * blocks


@pytest.mark.parametrize(
    ("bits", "grid", "count"),
    [
        *((8, "tread", 255), (7, "tread", 127), (4, "tread", 15), (3, "tread", 7), (2, "tread", 3)),
        *((6, "rise", 64), (4, "rise", 16), (2, "rise", 4), (1, "rise", 2)),
        *((8, "affine", 256), (5, "affine", 32), (2, "affine", 4)),
    ],
)
def test_all_levels_are_used_and_evenly_spaced(bits: Any, grid: Any, count: int) -> None:
    sent = through(uniform(bits, block=0, grid=grid), torch.linspace(-1, 1, 20_001)).unique()
    assert sent.numel() == count
    assert torch.allclose(sent, torch.linspace(-1, 1, count), atol=1e-6)
    assert (0 in sent) == (grid == "tread")


def test_the_error_reaches_half_a_step_to_nearest_and_nearly_a_step_at_random() -> None:
    x = torch.linspace(-1, 1, 20_001)
    assert 0.99 / 14 < (through(uniform(4, block=0), x) - x).abs().max() <= 1.0001 / 14
    assert (
        1.9 / 14
        < (through(uniform(4, block=0, rounding="stochastic"), x) - x).abs().max()
        < 2.0001 / 14
    )


def test_a_bad_value_spoils_its_block_and_no_other() -> None:
    for bad in (float("nan"), float("inf"), -float("inf")):
        x = torch.ones(12)
        x[5] = bad
        assert (
            through(uniform(4, block=4), x).isnan().tolist()
            == [False] * 4 + [True] * 4 + [False] * 4
        )
        assert through(uniform(4, step=0.5), x).isnan().tolist() == [i == 5 for i in range(12)]


def test_a_fixed_step_clips_at_the_last_level() -> None:
    assert through(uniform(4, step=0.5), torch.tensor([0.2, 0.3, -3.5, 100.0])).tolist() == [
        0.0,
        0.5,
        -3.5,
        3.5,
    ]


def test_ranks_round_by_their_own_lots() -> None:
    x, codec = torch.linspace(-1, 1, 500), uniform(2, rounding="stochastic")
    a, b = (through(codec, x, rank) - x for rank in (1, 2))
    assert (
        abs(float(torch.corrcoef(torch.stack([a, b]))[0, 1])) < 0.2
    )  # errors that fell together would not average out


def test_cuts_keep_blocks_and_bytes_whole() -> None:
    assert [uniform(2, block=b).traits.grain for b in (0, 1, 3, 4, 256)] == [4, 4, 12, 4, 256]


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"bits": 9}, "uniform(bits=9): choose 1 to 8"),
        ({"bits": 1}, "two levels leave none for zero"),
        ({"block": -1}, "uniform(block=-1): a block has at least 1 value"),
        ({"rounding": "up"}, "choose 'nearest' or 'stochastic'"),
        ({"grid": "round"}, "choose 'tread' or 'rise'"),
        ({"step": 0.0}, "a fixed step is positive and finite"),
        ({"step": float("nan")}, "a fixed step is positive and finite"),
        ({"step": 1.0, "grid": "rise"}, "none is left to mark a NaN"),
        ({"step": 1.0, "grid": "affine"}, "none is left to mark a NaN"),
        ({"step": 1.0, "grid": "point"}, "none is left to mark a NaN"),
        ({"bits": 1, "grid": "point"}, "two levels leave none for zero"),
        ({"scale": "range"}, "only 'point' moves its grid"),
        ({"scale": "norm", "grid": "point"}, "a norm is a distance from zero"),
        ({"step": 1.0, "scale": "mse"}, "a fixed step is every block's"),
        ({"step": 1.0, "block": "row"}, "a fixed step is every block's"),
        ({"block": "column"}, "or is a 'row'"),
        ({"block": 2.5}, "or is a 'row'"),
        ({"scale": "max"}, "choose one of 'absmax', 'norm'"),
        ({"scale": "norm", "grid": "affine"}, "a norm is a distance from zero"),
        ({"scale": "percentile"}, "above 50 and below 100"),
        ({"scale": "percentile", "at": 100.0}, "100 is scale='absmax'"),
        ({"scale": "sigma"}, "say how many"),
        ({"scale": "sigma", "at": -1.0}, "say how many"),
        ({"at": 3.0}, "only percentile and sigma have one"),
    ],
)
def test_a_wrong_argument_is_refused(settings: dict[str, Any], told: str) -> None:
    with pytest.raises(StrategyError) as caught:
        uniform(**settings)
    assert told in str(caught.value)


def test_all_wrong_arguments_are_told_at_once() -> None:
    with pytest.raises(StrategyError) as caught:
        uniform(bits=9, block=-1, rounding="up", step=-1.0)  # type: ignore[arg-type]
    assert len(caught.value.reasons) == 4


def test_affine_sends_two_numbers_a_block_and_covers_it_from_end_to_end() -> None:
    x = torch.linspace(999.0, 1001.0, 20_001)
    codec = uniform(4, block=0, grid="affine")
    assert codec.nbytes(Spec((), 0, 20_001, torch.float32)) == 10_001 + 8
    sent = through(codec, x)
    assert sent.min() == 999.0
    assert sent.max() == pytest.approx(1001.0)
    assert 0.99 / 15 < (sent - x).abs().max() < 1.01 / 15  # half a step of 2/15
    assert (through(uniform(4, block=0), x) - x).abs().max() > 1


def test_affine_of_the_largest_values() -> None:
    x = torch.tensor([-3e38, -1e38, 0.0, 1e38, 3e38])
    assert ((through(uniform(8, grid="affine"), x) - x).abs() <= 0.51 * 6e38 / 255).all()


def test_affine_of_equal_values_loses_nothing() -> None:
    for value in (0.0, 0.3, -7.0, 1e-40):
        assert torch.equal(
            through(uniform(2, grid="affine"), torch.full((9,), value)), torch.full((9,), value)
        )


@given(n=st.integers(0, 300), bits=st.integers(2, 8), block=st.integers(0, 40))
def test_point_sends_a_step_and_a_byte_a_block(n: int, bits: Any, block: int) -> None:
    blocks = math.ceil(n / (block or max(n, 1)))
    for dtype, size in ((torch.float32, 4), (torch.float64, 8)):
        assert (
            uniform(bits, block, grid="point").nbytes(Spec((), 0, n, dtype))
            == math.ceil(n * bits / 8) + (size + 1) * blocks
        )


@pytest.mark.parametrize(
    ("rounding", "scale"),
    [("nearest", "absmax"), ("stochastic", "absmax"), ("stochastic", "range")],
)
@pytest.mark.parametrize(
    ("low", "high"),
    [(-1.0, 1.0), (-0.1, 1.0), (-3.0, 0.2), (0.0, 5.0), (-5.0, -1.0), (2.0, 3.0), (-1e-4, 1.0)],
)
def test_point_has_a_level_at_zero_and_covers_the_rest(
    rounding: Any, scale: Any, low: float, high: float
) -> None:
    x, codec = (
        torch.cat([torch.linspace(low, high, 20_001), torch.zeros(50)]),
        uniform(3, 0, rounding, grid="point", scale=scale),
    )
    sent = through(codec, x)
    first, step = (float(each) for each in codec.levels(x[None]) if each is not None)
    assert (sent[-50:] == 0).all()
    assert (sent - x).abs().max() <= step * (0.5001 if rounding == "nearest" else 1.0001)
    below, above, span = (
        first - min(low, 0),
        max(high, 0) - first - 7 * step,
        max(high, 0) - min(low, 0),
    )
    if scale == "range" or rounding == "nearest":
        assert step == pytest.approx(span / 7)
        assert max(below, above) < 0.5001 * step
    else:
        assert span / 7.0001 < step < span / 5.9999
        assert max(below, above) < 1e-6 * span


def test_point_at_random_is_unbiased_up_to_both_ends_and_range_is_not() -> None:
    x = torch.tensor([-0.45, 1.0, 0.3, -0.1, 0.0, 0.9])
    for scale, off in (
        ("absmax", 0.0),
        ("range", 0.05),
    ):  # of steps of 1.45 / 3, one lies below zero and two above: up to 0.967
        codec = uniform(2, 0, "stochastic", grid="point", scale=scale)  # type: ignore[arg-type]
        mean = torch.stack([through(codec, x, step=step) for step in range(1500)]).mean(0)
        assert (mean - x)[torch.arange(6) != 1].abs().max() < 0.03
        assert float((mean - x)[1]) == pytest.approx(-off * 2 / 3, abs=0.03 if not off else 0.001)


def test_point_of_one_sign_has_every_level_on_its_side() -> None:
    x = torch.linspace(0, 1, 20_001)
    for values in (x, -x):
        sent = through(uniform(4, 0, grid="point"), values)
        assert sent.unique().numel() == 16
        assert (sent - values).abs().max() < 0.501 / 15  # half of what a grid around zero takes


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_the_best_point_loses_no_more_than_the_best_tread(bits: Any) -> None:
    for power in (1, 3):
        x = torch.randn(65_536, generator=torch.Generator().manual_seed(0)) ** power
        point, tread = (
            (through(uniform(bits, grid=grid, scale="mse"), x) - x).norm()
            for grid in ("point", "tread")
        )  # type: ignore[arg-type]
        assert point < 0.999 * tread


def test_point_cuts_each_end_by_itself() -> None:
    x = torch.cat(
        [torch.rand(4000, generator=torch.Generator().manual_seed(0)) - 0.5, torch.tensor([3.0])]
    )
    errors = [
        float((through(uniform(4, 0, grid=grid, scale="mse"), x) - x).norm())
        for grid in ("point", "tread")
    ]  # type: ignore[arg-type]
    low, step = (
        float(each)
        for each in uniform(4, 0, grid="point", scale="mse").levels(x[None])
        if each is not None
    )
    assert errors[0] < 0.99 * errors[1]
    assert low > -0.6
    assert low + 15 * step < 1.5


def test_point_of_extremes() -> None:
    x = torch.tensor([-3e38, -1e38, 0.0, 1e38, 3e38])
    for rounding in ("nearest", "stochastic"):
        assert (
            (through(uniform(8, rounding=rounding, grid="point"), x) - x).abs() <= 1.01 * 6e38 / 254
        ).all()  # type: ignore[arg-type]
        for value in (0.0, 0.3, -7.0):
            even = torch.full((9,), value)
            assert torch.allclose(
                through(uniform(2, rounding=rounding, grid="point"), even), even, rtol=1e-6
            )  # type: ignore[arg-type]
    for bad in (float("nan"), float("inf"), -float("inf")):
        x = torch.ones(12)
        x[5] = bad
        assert (
            through(uniform(4, block=4, grid="point"), x).isnan().tolist()
            == [False] * 4 + [True] * 4 + [False] * 4
        )


def test_every_scale_cuts_where_it_says() -> None:
    x = torch.cat([torch.linspace(-1, 1, 2000), torch.tensor([10.0])])
    largest = {
        scale: float(through(uniform(8, block=0, scale=scale, at=at), x).max())  # type: ignore[arg-type]
        for scale, at in (
            ("absmax", None),
            ("norm", None),
            ("percentile", 99.0),
            ("sigma", 3.0),
            ("mse", None),
        )
    }
    assert largest["absmax"] == pytest.approx(10)
    assert largest["norm"] == pytest.approx(10, abs=0.6 * float(x.norm()) / 127)
    assert largest["percentile"] == pytest.approx(0.99, abs=0.01)
    assert largest["sigma"] == pytest.approx(3 * float(x.square().mean().sqrt()), rel=1e-4)
    assert largest["mse"] in [pytest.approx(10 * 2 ** (-i / 4)) for i in range(16)]


def test_affine_scales_cut_each_end_by_itself() -> None:
    x = torch.cat([torch.linspace(4, 6, 2000), torch.tensor([100.0])])
    for scale, at in (("percentile", 99.0), ("sigma", 3.0), ("mse", None)):
        sent = through(uniform(8, block=0, grid="affine", scale=scale, at=at), x)  # type: ignore[arg-type]
        assert 3.99 < float(sent.min()) < 4.1
        assert 5.9 < float(sent.max()) <= 100.0001
    assert (
        float(through(uniform(8, block=0, grid="affine", scale="percentile", at=99.0), x).max()) < 6
    )


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("grid", ["tread", "rise", "affine", "point"])
def test_mse_never_loses_more_than_absmax(bits: Any, grid: Any) -> None:
    for power in (1, 3):
        x = torch.randn(65_536, generator=torch.Generator().manual_seed(0)) ** power
        best, plain = (
            (through(uniform(bits, grid=grid, scale=scale), x) - x).norm()
            for scale in ("mse", "absmax")
        )  # type: ignore[arg-type]
        assert best < plain


def test_huge_and_tiny_blocks_have_every_scale() -> None:
    normal = torch.randn(64, generator=torch.Generator().manual_seed(0)).clamp(-2, 2)
    for size in (1e37, 1e-36):
        for scale, at in (("norm", None), ("percentile", 99.0), ("sigma", 3.0), ("mse", None)):
            sent = through(uniform(8, scale=scale, at=at), normal * size)  # type: ignore[arg-type]
            assert (sent / size - normal).abs().max() < 0.1


def test_one_bit_at_random_is_unbiased() -> None:
    x = torch.tensor([0.5, -0.25, 1.0, -1.0])
    sent = torch.stack(
        [
            through(uniform(1, grid="rise", rounding="stochastic"), x, step=step)
            for step in range(2000)
        ]
    )
    assert sent.unique().tolist() == [-1.0, 1.0]
    assert torch.allclose(sent.mean(0), x, atol=0.1)


def test_its_repr_names_a_scale_only_where_one_is_set() -> None:
    assert (
        repr(uniform(4))
        == "uniform(bits=4, block=256, rounding='nearest', step=None, grid='tread')"
    )
    for codec in (uniform(3, scale="mse"), uniform(3, "row", scale="sigma", at=2.0), uniform(4)):
        assert eval(repr(codec), {"uniform": uniform}) == codec


@pytest.mark.parametrize(
    "codec",
    [
        uniform(3, "row", grid="affine"),
        uniform(4, scale="mse"),
        uniform(4, 0, scale="sigma", at=2.5),
        uniform(2, grid="point"),
    ],
    ids=repr,
)
def test_every_grid_and_scale_travels(codec: Codec) -> None:
    check_route(two_shot(), codec, worlds=[3])


@pytest.mark.parametrize("step", [0.0, 1e-46, 1e39, float("inf")])
def test_a_step_that_float32_does_not_hold_is_refused(step: float) -> None:
    with pytest.raises(StrategyError, match="positive and finite in float32"):
        uniform(8, step=step)
