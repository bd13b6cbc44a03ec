import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tests.cases import CODECS
from thinwire.core import Codec, Spec, State
from thinwire.errors import StrategyError
from thinwire.testing import check_codec, seats
from thinwire.what import uniform

SEAT = seats()[1]


def through(codec: uniform, x: Tensor, rank: int = 1, step: int = 0) -> Tensor:
    spec, seat = Spec((), 0, x.numel(), torch.float32), seats(step)[rank]
    return codec.decode(codec.encode(x, spec, State(), seat), spec, State(), SEAT, rank)


@pytest.mark.parametrize("codec", CODECS["uniform"], ids=repr)
def test_laws(codec: Codec) -> None:
    check_codec(codec)


@given(n=st.integers(0, 300), bits=st.sampled_from([8, 4, 2]), block=st.integers(0, 40), fixed=st.booleans())
def test_bytes_are_codes_and_one_step_a_block(n: int, bits: Any, block: int, fixed: bool) -> None:
    codec = uniform(bits, block, step=0.1 if fixed else None)
    blocks = 0 if fixed else math.ceil(n / (block or max(n, 1)))
    assert codec.nbytes(Spec((), 0, n, torch.float32)) == math.ceil(n * bits / 8) + 4 * blocks
    assert codec.nbytes(Spec((), 0, n, torch.float64)) == math.ceil(n * bits / 8) + 8 * blocks


@pytest.mark.parametrize(("bits", "grid", "count"), [(8, "tread", 255), (4, "tread", 15), (2, "tread", 3), (4, "rise", 16), (2, "rise", 4)])
def test_all_levels_are_used_and_evenly_spaced(bits: Any, grid: Any, count: int) -> None:
    sent = through(uniform(bits, block=0, grid=grid), torch.linspace(-1, 1, 20_001)).unique()
    assert sent.numel() == count
    assert torch.allclose(sent, torch.linspace(-1, 1, count), atol=1e-6)
    assert (0 in sent) == (grid == "tread")


def test_the_error_reaches_half_a_step_to_nearest_and_nearly_a_step_at_random() -> None:
    x = torch.linspace(-1, 1, 20_001)
    assert 0.99 / 14 < (through(uniform(4, block=0), x) - x).abs().max() <= 1.0001 / 14
    assert 1.9 / 14 < (through(uniform(4, block=0, rounding="stochastic"), x) - x).abs().max() < 2.0001 / 14


def test_a_bad_value_spoils_its_block_and_no_other() -> None:
    for bad in (float("nan"), float("inf"), -float("inf")):
        x = torch.ones(12)
        x[5] = bad
        assert through(uniform(4, block=4), x).isnan().tolist() == [False] * 4 + [True] * 4 + [False] * 4
        assert through(uniform(4, step=0.5), x).isnan().tolist() == [i == 5 for i in range(12)]


def test_a_fixed_step_clips_at_the_last_level() -> None:
    assert through(uniform(4, step=0.5), torch.tensor([0.2, 0.3, -3.5, 100.0])).tolist() == [0.0, 0.5, -3.5, 3.5]


def test_ranks_round_by_their_own_lots() -> None:
    x, codec = torch.linspace(-1, 1, 500), uniform(2, rounding="stochastic")
    a, b = (through(codec, x, rank) - x for rank in (1, 2))
    assert abs(float(torch.corrcoef(torch.stack([a, b]))[0, 1])) < 0.2  # errors that fell together would not average out


def test_cuts_keep_blocks_and_bytes_whole() -> None:
    assert [uniform(2, block=b).grain for b in (0, 1, 3, 4, 256)] == [4, 4, 12, 4, 256]


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"bits": 3}, "uniform(bits=3): choose 8, 4 or 2"),
        ({"block": -1}, "uniform(block=-1): a block has at least 1 value"),
        ({"rounding": "up"}, "choose 'nearest' or 'stochastic'"),
        ({"grid": "round"}, "choose 'tread' or 'rise'"),
        ({"step": 0.0}, "a fixed step is positive and finite"),
        ({"step": float("nan")}, "a fixed step is positive and finite"),
        ({"step": 1.0, "grid": "rise"}, "none is left to mark a NaN"),
    ],
)
def test_a_wrong_argument_is_refused(settings: dict[str, Any], told: str) -> None:
    with pytest.raises(StrategyError) as caught:
        uniform(**settings)
    assert told in str(caught.value)


def test_all_wrong_arguments_are_told_at_once() -> None:
    with pytest.raises(StrategyError) as caught:
        uniform(bits=3, block=-1, rounding="up", step=-1.0)  # type: ignore[arg-type]
    assert len(caught.value.reasons) == 4
