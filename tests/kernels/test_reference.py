"""The definitions that every faster kernel must equal."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from thinwire.kernels import reference

widths = st.integers(1, 24)
draws = st.integers(0, 2**32)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@given(bits=widths, n=st.integers(0, 200), seed=draws)
def test_unpack_is_the_inverse_of_pack(bits: int, n: int, seed: int) -> None:
    values = torch.randint(0, 2**bits, (n,), generator=generator(seed))
    payload = reference.pack(values, bits)
    assert payload.dtype == torch.uint8
    assert payload.numel() == reference.packed_nbytes(n, bits) == math.ceil(n * bits / 8)
    assert reference.unpack(payload, n, bits).tolist() == values.tolist()


@given(bits=widths, n=st.integers(1, 50), seed=draws)
def test_bits_lie_first_value_lowest_and_spare_bits_are_zero(bits: int, n: int, seed: int) -> None:
    values = torch.randint(0, 2**bits, (n,), generator=generator(seed)).tolist()
    number = sum(value << (i * bits) for i, value in enumerate(values))
    assert bytes(reference.pack(torch.tensor(values), bits).tolist()) == number.to_bytes(
        math.ceil(n * bits / 8), "little"
    )


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64])
@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_codes_may_come_as_bytes_or_as_integers(dtype: torch.dtype, bits: int) -> None:
    values = torch.arange(17) % 2**bits
    assert torch.equal(reference.pack(values.to(dtype), bits), reference.pack(values, bits))


@given(n=st.integers(0, 100), block=st.integers(1, 40))
def test_blocks_are_filled_up_with_zeros(n: int, block: int) -> None:
    x = torch.arange(1.0, n + 1)
    blocks = reference.to_blocks(x, block)
    assert blocks.shape == (math.ceil(n / block), block)
    assert blocks.reshape(-1).tolist() == x.tolist() + [0.0] * (blocks.numel() - n)


@given(
    seed=draws,
    bits=st.sampled_from([2, 4, 8]),
    grid=st.sampled_from(["tread", "rise"]),
    stochastic=st.booleans(),
    scale=st.floats(-30, 30),
)
def test_quantise_stays_within_a_step(
    seed: int, bits: int, grid: reference.Grid, stochastic: bool, scale: float
) -> None:
    x = torch.randn(6, 16, generator=generator(seed)) * 2.0**scale
    steps = reference.block_steps(x, bits, grid)[:, None]
    noise = (
        reference.random_bits(x.numel(), (seed & 0xFFFFFFFF, 7)).view(x.shape)
        if stochastic
        else None
    )
    codes = reference.quantise(x, steps, bits, grid, noise)
    count, top = reference.levels(bits, grid)
    assert codes.dtype == torch.uint8
    assert int(codes.max()) < count
    error = (reference.dequantise(codes, steps, bits, grid) - x).abs()
    assert (error <= (1.0 if stochastic else 0.5) * steps + 1e-6 * top * steps).all()
    assert (
        torch.allclose(
            reference.dequantise(codes, steps, bits, grid).abs().amax(1), x.abs().amax(1), rtol=1e-5
        )
        or stochastic
    )


def test_a_block_that_is_zero_or_no_number() -> None:
    blocks = torch.tensor([[0.0, 0.0], [float("inf"), 1.0], [float("nan"), 1.0], [1.0, -1.0]])
    steps = reference.block_steps(blocks, 4, "tread")
    assert steps[0] == 0
    assert steps.isnan().tolist() == [False, True, True, False]
    values = reference.dequantise(
        reference.quantise(blocks, steps[:, None], 4, "tread", None), steps[:, None], 4, "tread"
    )
    assert values[0].tolist() == [0.0, 0.0]
    assert values[3].tolist() == [1.0, -1.0]
    assert values[1:3].isnan().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.int64])
def test_bytes_and_back_whatever_the_alignment(dtype: torch.dtype) -> None:
    x = torch.arange(7).to(dtype)
    for shift in range(9):
        payload = torch.cat([torch.zeros(shift, dtype=torch.uint8), reference.as_bytes(x)])[shift:]
        assert torch.equal(reference.from_bytes(payload, dtype), x)


@pytest.mark.parametrize(
    ("n", "begin", "stride"), [(4, 0, 2), (2, 0, 2), (4, 1, 4), (5, 4, 1), (0, 0, 1)]
)
def test_bytes_of_strided_values_of_a_single_one_too(n: int, begin: int, stride: int) -> None:
    x = torch.arange(float(n))[begin::stride]
    assert reference.as_bytes(x).view(torch.float32).tolist() == x.tolist()


def test_bytes_of_contiguous_values_are_not_copied() -> None:
    x = torch.arange(5.0)
    assert reference.as_bytes(x[1:]).data_ptr() == x[1:].data_ptr()
