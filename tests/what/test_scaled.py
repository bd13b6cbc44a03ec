import pytest
import torch

from tests.cases import CODECS
from thinwire.bench.codecs import spoken
from thinwire.core import Codec, Spec, State
from thinwire.errors import StrategyError
from thinwire.testing import check_codec, seats
from thinwire.what import fp4, fp8, nf4, scaled, uniform
from thinwire.what._levels import Levels

SEAT = seats()[1]
HEAVY = torch.randn(2**14, generator=torch.Generator().manual_seed(0)) ** 3
SPEC = Spec((), 0, HEAVY.numel(), torch.float32)


def error(codec: Codec, x: torch.Tensor = HEAVY) -> float:
    return float((spoken(codec, x, SPEC, SEAT)[1] - x).norm() / x.norm())


@pytest.mark.parametrize("codec", CODECS["scaled"], ids=repr)
def test_laws(codec: Codec) -> None:
    check_codec(codec)


@pytest.mark.parametrize("fit", ["near", "cover"])
def test_scales_are_a_sixteenth_of_an_octave_apart(fit: str) -> None:
    codec = scaled(16, fit)  # type: ignore[arg-type]
    core, side = codec.split(HEAVY, SPEC, State(), SEAT)
    largest = HEAVY.view(-1, 16).abs().amax(1)
    ratio = codec.scales(side, SPEC) / largest
    low, high = (1, 2 ** (1 / 16)) if fit == "cover" else (2 ** (-1 / 31), 2 ** (1 / 31))
    assert side.numel() == 4 + 1024
    assert core.abs().max() <= 1
    assert low - 1e-6 < ratio.min() < 1.003 * low
    assert 0.997 * high < ratio.max() < high + 1e-6


def test_small_blocks_err_less_than_float_scales_of_the_same_bytes() -> None:
    for inner, alone in ((nf4(0), nf4(128)), (fp4("e2m1", 0), fp4("e2m1", 128)), (uniform(4, step=1 / 7), uniform(4, 128))):
        codec = scaled(33) >> inner
        assert codec.nbytes(SPEC) <= alone.nbytes(SPEC)  # type: ignore[operator]
        assert error(codec) < 0.8 * error(alone)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_the_best_scale_errs_least(bits: int) -> None:
    inner = uniform(bits, step=1 / (2 ** (bits - 1) - 1))  # type: ignore[arg-type]
    errors = [error(scaled(32, fit) >> inner) for fit in (bits, "near", "cover")]  # type: ignore[arg-type]
    assert errors[0] < min(errors[1:]) * {2: 0.9, 3: 0.95, 4: 0.99, 8: 0.999}[bits]


@pytest.mark.parametrize("inner", [nf4(0), fp4("e2m1", 0), fp4("e3m0", 0), fp8("e4m3", 0), fp8("e5m2", 0)], ids=repr)
def test_the_best_scale_of_a_table_errs_least(inner: Levels) -> None:
    fit = getattr(inner, "format", "nf4")
    errors = [error(scaled(32, each) >> inner) for each in (fit, "near", "cover")]  # type: ignore[arg-type]
    assert errors[0] < 0.98 * min(errors[1:])


def test_a_block_far_below_the_largest_is_said_on_the_last_grid() -> None:
    x = torch.zeros(64)
    x[0], x[32:] = 1.0, 1e-6
    value = spoken(scaled(32) >> uniform(8, step=1 / 127), x, Spec((), 0, 64, torch.float32), SEAT)[1]
    assert value[0] == 1
    assert (value[32:] - 1e-6).abs().max() < 2e-5 / 254


@pytest.mark.parametrize(
    ("settings", "told"), [({"block": -1}, "at least 1"), ({"fit": "far"}, "'near' or 'cover'"), ({"fit": 1}, "2 to 8")]
)
def test_what_cannot_be_is_refused(settings: dict, told: str) -> None:
    with pytest.raises(StrategyError, match=told):
        scaled(**settings)
