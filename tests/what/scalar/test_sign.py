from math import pi

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from thinwire.core import Spec, State
from thinwire.errors import StrategyError
from thinwire.how import two_shot
from thinwire.testing import check_route, contexts
from thinwire.what import feedback, sign

SEAT, SPEC = contexts()[1], Spec((), 0, 256, torch.float32)


def through(codec: sign, x: torch.Tensor) -> torch.Tensor:
    spec = Spec((), 0, x.numel(), torch.float64 if x.dtype == torch.float64 else torch.float32)
    return codec.decode(codec.encode(x, spec, State(), SEAT), spec, State(), SEAT, 1)


@given(n=st.integers(0, 300), block=st.integers(0, 40))
def test_bytes_are_bits_and_one_scale_a_block(n: int, block: int) -> None:
    blocks = -(-n // (block or max(n, 1)))
    assert sign(block).nbytes(Spec((), 0, n, torch.float32)) == -(-n // 8) + 4 * blocks
    assert sign(block).nbytes(Spec((), 0, n, torch.float64)) == -(-n // 8) + 8 * blocks


def test_the_mean_magnitude_of_a_block_and_the_sign_of_a_value_arrive() -> None:
    x = torch.tensor(
        [1.0, -3.0, 0.0, 4.0, 10.0, -20.0]
    )  # the last block is short: its mean is of two
    assert through(sign(block=4), x).tolist() == [2.0, -2.0, 2.0, 2.0, 15.0, -15.0]


def test_of_a_normal_block_two_over_pi_of_the_squared_length_arrives() -> None:
    x = torch.randn(100_000, generator=torch.Generator().manual_seed(0))
    lost = (through(sign(block=0), x) - x).square().sum() / x.square().sum()
    assert abs(float(lost) - (1 - 2 / pi)) < 0.01


def test_huge_values_have_a_mean() -> None:
    for x in (torch.full((9,), 3e38), torch.full((9,), -1.7e308, dtype=torch.float64)):
        assert torch.allclose(through(sign(block=0), x), x)


def test_a_bad_value_spoils_its_block_and_no_other() -> None:
    for bad in (float("nan"), float("inf"), -float("inf")):
        x = torch.ones(12)
        x[5] = bad
        assert through(sign(block=4), x).isnan().tolist() == [False] * 4 + [True] * 4 + [False] * 4


def test_cuts_keep_blocks_and_bytes_whole() -> None:
    assert [sign(b).traits.grain for b in (0, 1, 12, 256)] == [8, 8, 24, 256]


def test_a_wrong_block_is_refused() -> None:
    with pytest.raises(StrategyError, match="0 for the whole span"):
        sign(block=-1)


def test_feedback_on_both_sides_as_in_1_bit_adam() -> None:
    check_route(two_shot(back=feedback(sign())), feedback(sign()), worlds=[3])


def test_with_feedback_what_is_sent_keeps_up_with_what_was_given() -> None:
    codec, draws = feedback(sign(64)), torch.Generator().manual_seed(0)
    spec, state, x = SPEC, codec.init(SPEC, SEAT), torch.randn(256, generator=draws)
    told = torch.zeros(256)
    for _ in range(200):
        flow = codec.rounds(x, spec, state, SEAT)
        packet = next(flow)
        told += packet.open(packet.payload, 1)
    assert (told / 200 - x).norm() < 0.05 * x.norm()
    assert (through(sign(64), x) - x).norm() > 0.5 * x.norm()
