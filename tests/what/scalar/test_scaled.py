import pytest
import torch

from thinwire.core import Codec, Spec, State
from thinwire.errors import StrategyError
from thinwire.planner.codecs import payload_and_sum
from thinwire.testing import contexts
from thinwire.what import cast, fp4, nf4, scaled, uniform

SEAT = contexts()[1]
HEAVY = torch.randn(2**14, generator=torch.Generator().manual_seed(0)) ** 3
SPEC = Spec((), 0, HEAVY.numel(), torch.float32)


def error(codec: Codec, x: torch.Tensor = HEAVY) -> float:
    return float((payload_and_sum(codec, x, SPEC, SEAT)[1] - x).norm() / x.norm())


@pytest.mark.parametrize("octave", [16, 32, 64])
@pytest.mark.parametrize("fit", ["near", "cover"])
def test_scales_are_a_share_of_an_octave_apart(fit: str, octave: int) -> None:
    codec = scaled(16, fit, octave=octave)  # type: ignore[arg-type]
    core, side = codec.split(HEAVY, SPEC, State(), SEAT)
    largest = HEAVY.view(-1, 16).abs().amax(1)
    said = largest > largest.max() * 2 ** (-250 / octave)  # the others are said on the last grid
    ratio = (codec.scales(side, SPEC) / largest)[said]
    step = 2 ** (1 / octave)
    low, high = (1, step) if fit == "cover" else (2 / (1 + step), 2 * step / (1 + step))
    assert side.numel() == 4 + 1024
    assert core.abs().max() <= 1
    assert low - 1e-6 < ratio.min() < 1.003 * low
    assert 0.997 * high < ratio.max() < high + 1e-6


def test_small_blocks_err_less_than_float_scales_of_the_same_bytes() -> None:
    for inner, alone in (
        (nf4(0), nf4(128)),
        (fp4("e2m1", 0), fp4("e2m1", 128)),
        (uniform(4, step=1 / 7), uniform(4, 128)),
    ):
        codec = scaled(33) >> inner
        assert codec.nbytes(SPEC) <= alone.nbytes(SPEC)  # type: ignore[operator]
        assert error(codec) < 0.8 * error(alone)


def test_a_block_far_below_the_largest_is_said_on_the_last_grid() -> None:
    x = torch.zeros(64)
    x[0], x[32:] = 1.0, 1e-6
    value = payload_and_sum(
        scaled(32) >> uniform(8, step=1 / 127), x, Spec((), 0, 64, torch.float32), SEAT
    )[1]
    assert value[0] == 1
    assert (value[32:] - 1e-6).abs().max() < 2e-5 / 254


ASIDE = torch.randn(512, 1, generator=torch.Generator().manual_seed(1)) + 0.3 * HEAVY.view(
    512, 32
)  # blocks to one side of zero


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_a_zero_point_pays_where_blocks_lie_to_one_side(bits: int) -> None:
    """As many bytes for both: a block of 32 with two bytes, and one of 16 with one."""
    around = scaled(16, bits) >> uniform(bits, step=1 / (2 ** (bits - 1) - 1))  # type: ignore[arg-type]
    aside = scaled(32, bits, zero=True) >> uniform(bits, 0, grid="rise")  # type: ignore[arg-type]
    assert aside.nbytes(SPEC) == around.nbytes(SPEC) + 4  # the step of the grid "rise"
    assert error(aside, ASIDE.view(-1)) < {8: 1.0}.get(bits, 0.8) * error(around, ASIDE.view(-1))


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_the_best_zero_point_errs_least(bits: int) -> None:
    inner = uniform(bits, 0, grid="rise")  # type: ignore[arg-type]
    errors = [
        error(scaled(32, fit, zero=True) >> inner, ASIDE.view(-1))
        for fit in (bits, "near", "cover")
    ]  # type: ignore[arg-type]
    assert errors[0] < min(errors[1:]) * {2: 0.9, 3: 0.95, 4: 0.99, 8: 1.0}[bits]


@pytest.mark.parametrize("fit", ["cover", "mean"])
@pytest.mark.parametrize("octave", [16, 32, 64])
def test_to_cover_with_a_zero_point_cuts_nothing(octave: int, fit: str) -> None:
    codec = scaled(32, fit, zero=True, octave=octave)  # type: ignore[arg-type]
    for x in (ASIDE.view(-1), ASIDE.view(-1) + 100, HEAVY, HEAVY.abs()):
        core, side = codec.split(x, SPEC, State(), SEAT)
        back = codec.join(core, side, SPEC, State(), SEAT, 1)
        assert (back - x).abs().max() < 1e-5 * x.abs().max()
        assert core.abs().max() <= 1


def test_floats_around_the_mean_err_least_where_few_values_are_large() -> None:
    x = (5 + 0.1 * HEAVY).view(-1)
    inner = cast("fp16")
    errors = [
        error(codec >> inner, x)
        for codec in (scaled(32, "mean", True), scaled(32, "cover", True), scaled(32, "cover"))
    ]
    assert errors[0] < 0.8 * errors[1] < 0.3 * errors[2]


def test_blocks_far_from_zero_are_said_by_a_longer_scale() -> None:
    x = 1000 + torch.rand(512)
    codec = scaled(32, zero=True) >> uniform(8, 0, grid="rise")
    value = payload_and_sum(codec, x, Spec((), 0, 512, torch.float32), SEAT)[1]
    assert (value - x).abs().max() < 1.05 * (1000 / 4.97) / 255  # zero points reach four scales


def test_what_lies_near_the_largest_number_stays_finite() -> None:
    x = torch.tensor([3.4e38, -3.4e38, 3.4e38, 3.3e38]).repeat_interleave(8)
    for fit in ("near", "cover", 4):
        value = payload_and_sum(
            scaled(8, fit, zero=True) >> uniform(8, 0, grid="rise"),
            x,
            Spec((), 0, 32, torch.float32),
            SEAT,
        )[1]  # type: ignore[arg-type]
        assert (value / 3.4e38 - x / 3.4e38).abs().max() < 0.1


def test_finer_scales_err_less_in_8_bits() -> None:
    errors = [
        error(scaled(32, 8, octave=octave) >> uniform(8, step=1 / 127), torch.rand(2**14))
        for octave in (16, 32, 64)
    ]  # type: ignore[arg-type]
    assert errors[2] < errors[1] < 0.995 * errors[0]


def test_what_is_as_by_default_is_not_said() -> None:
    assert repr(scaled(16, 4)) == "scaled(block=16, fit=4)"
    assert (
        repr(scaled(16, "cover", True, 64)) == "scaled(block=16, fit='cover', zero=True, octave=64)"
    )


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"block": -1}, "at least 1"),
        ({"fit": "far"}, "'near', 'cover' or 'mean'"),
        ({"fit": "mean"}, "say zero=True"),
        ({"fit": 1}, "2 to 8"),
        ({"zero": 1}, "expected bool"),
        ({"octave": 8}, "16, 32 or 64"),
    ],
)
def test_what_cannot_be_is_refused(settings: dict, told: str) -> None:
    with pytest.raises(StrategyError, match=told):
        scaled(**settings)
