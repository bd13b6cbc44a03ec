import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from thinwire.core import Codec, Spec, State
from thinwire.errors import StrategyError
from thinwire.how import two_shot
from thinwire.kernels.rotation import rotate
from thinwire.testing import check_route, contexts
from thinwire.what import by_role, cast, feedback, hadamard, uniform

SEAT = contexts()[1]


def through(codec: Codec, x: torch.Tensor, rank: int = 1) -> torch.Tensor:
    spec = Spec((), 0, x.numel(), torch.float32)
    coder, state = codec.single_packet_coder, codec.init(spec, contexts()[rank])
    assert coder is not None
    return coder.decode(coder.encode(x, spec, state, contexts()[rank]), spec, state, SEAT, rank)


@pytest.mark.parametrize("size", [1, 2, 8, 64])
def test_rotate_is_the_walsh_hadamard_matrix(size: int) -> None:
    matrix = torch.ones(1, 1)
    while len(matrix) < size:
        matrix = torch.kron(torch.tensor([[1.0, 1.0], [1.0, -1.0]]), matrix)
    assert torch.allclose(rotate(torch.eye(size)), matrix / size**0.5)


@given(n=st.integers(0, 600), log=st.integers(1, 8))
def test_the_core_is_whole_blocks_and_a_power_of_two(n: int, log: int) -> None:
    codec, spec = hadamard(2**log), Spec((), 0, n, torch.float32)
    tail = codec.core_numel(spec) - n // 2**log * 2**log
    assert tail in [0] + [2**k for k in range(log + 1)]
    assert n <= codec.core_numel(spec) < 2 * n or codec.core_numel(spec) == n
    x = torch.randn(n, generator=torch.Generator().manual_seed(n))
    core, side = codec.split(x, spec, State(), SEAT)
    assert (core.numel(), side.numel()) == (codec.core_numel(spec), 0)
    assert torch.allclose(codec.join(core, side, spec, State(), SEAT, 1), x, atol=1e-5)
    assert torch.allclose(core.norm(), x.norm(), rtol=1e-5)  # orthonormal: every length stays


def test_the_error_of_what_follows_keeps_its_norm() -> None:
    x, spec = (
        torch.randn(4096, generator=torch.Generator().manual_seed(0)),
        Spec((), 0, 4096, torch.float32),
    )
    codec = hadamard(256)
    core, _ = codec.split(x, spec, State(), SEAT)
    error = (through(codec >> cast(), x) - x).norm()
    assert torch.allclose(error, (core.bfloat16().float() - core).norm(), rtol=1e-3)


def test_an_outlier_is_spread_over_its_block() -> None:
    x = torch.randn(256, generator=torch.Generator().manual_seed(0))
    x[17] = 100.0
    rotated, plain = (through(codec, x) - x for codec in (hadamard(256) >> uniform(4), uniform(4)))
    assert rotated.norm() < 0.5 * plain.norm()


def test_signs_are_shared_by_ranks_and_change_with_the_step() -> None:
    x, spec = torch.ones(64), Spec((), 0, 64, torch.float32)
    cores = [
        hadamard(64).split(x, spec, State(), contexts(step)[rank])[0]
        for step, rank in ((0, 1), (0, 2), (1, 1))
    ]
    assert torch.equal(cores[0], cores[1])
    assert not torch.equal(cores[0], cores[2])


def test_values_below_the_largest_over_the_root_of_a_block_do_not_overflow() -> None:
    x = torch.full((256,), 1e37)
    assert torch.allclose(through(hadamard(256), x), x)


@pytest.mark.parametrize("block", [-4, 0, 1, 3, 255, 2**21])
def test_a_wrong_block_is_refused(block: int) -> None:
    with pytest.raises(StrategyError, match="power of two"):
        hadamard(block)


@pytest.mark.parametrize(
    "codec",
    [
        by_role(matrix=hadamard(32) >> uniform(8), vector=cast()),
        feedback(hadamard(64) >> uniform(2)),
    ],
    ids=repr,
)
def test_a_sum_that_is_said_again_is_turned_back_by_the_signs_it_was_turned_by(
    codec: Codec,
) -> None:
    check_route(two_shot(), codec, worlds=[3])
