"""Tables of levels: every build equals the reference bit for bit, at any size of a block."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tests.kernels.test_native import BUILT, levels
from tests.kernels.values import keys, same, values
from thinwire.kernels import native
from thinwire.kernels.levels import Table, decode, encode, nearest_index, stochastic_index
from thinwire.kernels.reference import Key
from thinwire.what import fp4, fp8, loglevels, nf4, powerlevels
from thinwire.what.scalar._levels import Levels, table

pytestmark = pytest.mark.skipif(
    not BUILT, reason="built without a compiler: there are no native kernels"
)

CODECS: tuple[Levels, ...] = (
    nf4(),
    fp4(),
    fp4("e3m0"),
    fp8(),
    fp8("e5m2"),
    loglevels(8, 1e-30),
    loglevels(3, 0.1),
    loglevels(6, 0.001, grid="rise"),
    powerlevels(8, 8.0),
    powerlevels(2, grid="rise"),
    powerlevels(5),
)
DTYPES = (torch.float32, torch.float32, torch.bfloat16, torch.float16)
Told = tuple[Tensor, Tensor, Tensor, Tensor]


def told(level: native.Level, x: Tensor, block: int, own: Table, key: Key | None) -> Told:
    """Return scales, codes, what they decode to, and that added to ones."""
    n = x.numel()
    with native.using(level):
        payload = encode(x, block, own, key)
        values = decode(payload, n, block, own, torch.float32)
        total = decode(payload, n, block, own, torch.float32, torch.ones(n), add=True)
    head = 4 * -(-n // block)
    return payload[:head].clone().view(torch.float32), payload[head:], values, total


@levels
@given(
    codec=st.sampled_from(CODECS),
    n=st.one_of(st.integers(1, 700), st.sampled_from([4096, 4097])),
    block=st.one_of(st.integers(1, 300), st.sampled_from([64, 256, 1024, 10_000])),
    scale=st.sampled_from([-140.0, -90.0, 0.0, 120.0]),
    odd=st.sampled_from([0, 0, 3]),
    key=keys,
    dtype=st.sampled_from(DTYPES),
)
def test_codes_are_those_of_torch(
    level: native.Level,
    codec: Levels,
    n: int,
    block: int,
    scale: float,
    odd: int,
    key: Key | None,
    dtype: torch.dtype,
) -> None:
    x, block = values(n, n + block, scale, odd).to(dtype), min(block, n)
    made, expected = (told(each, x, block, table(codec), key) for each in (level, "torch"))
    assert all(same(a, b) for a, b in zip(made, expected, strict=True))


@levels
@pytest.mark.parametrize("codec", CODECS, ids=repr)
@pytest.mark.parametrize("key", [None, (1, 2)], ids=str)
def test_values_at_and_beside_each_edge(
    level: native.Level, codec: Levels, key: Key | None
) -> None:
    own, _ = table(codec).places
    middles = torch.cat([own, (own[1:] + own[:-1]) / 2]).float()
    up, down = (torch.nextafter(middles, torch.full_like(middles, way)) for way in (9e9, -9e9))
    x = torch.cat([own.abs().max().float().view(1), middles, up, down])
    made, expected = (told(each, x, x.numel(), table(codec), key) for each in (level, "torch"))
    assert all(same(a, b) for a, b in zip(made, expected, strict=True))


def test_every_pattern_of_a_byte_is_decoded_alike() -> None:
    for codec in CODECS:
        own = table(codec)
        codes = torch.arange(256, dtype=torch.int16).to(torch.uint8)
        payload = torch.cat([torch.tensor([0.7]).view(torch.uint8), codes])
        n = 256 * 8 // own.bits
        with native.using("torch"):
            expected = decode(payload, n, n, own, torch.float32)
        for level in BUILT:
            with native.using(level):
                assert same(decode(payload, n, n, own, torch.float32), expected)


def test_threads_change_nothing() -> None:
    x, before = values(1_200_000, 0, 0.0, 0), torch.get_num_threads()
    one = encode(x, 96, table(nf4()), (1, 2))
    try:
        torch.set_num_threads(3)
        assert torch.equal(encode(x, 96, table(nf4()), (1, 2)), one)
    finally:
        torch.set_num_threads(before)


def test_places_by_hand() -> None:
    own = torch.tensor([-1.0, 0.0, 0.5, 1.0])
    x = torch.tensor([-1.0, -0.5, -0.4, 0.25, 0.3, 1.0])
    assert nearest_index(x, own).tolist() == [0, 0, 1, 1, 2, 3]
    noise = torch.full((6,), 0.5)
    assert stochastic_index(x, own, noise).tolist() == [0, 0, 1, 1, 2, 3]
