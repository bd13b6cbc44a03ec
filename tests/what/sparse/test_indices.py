import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from thinwire.errors import PayloadError
from thinwire.what import topk
from thinwire.what.sparse import _indices
from thinwire.what.sparse._indices import CODINGS, Coding

CODER = topk(1)


def draw(seed: int, k: int, per: int, chunks: int) -> Tensor:
    draws = torch.Generator().manual_seed(seed)
    return torch.rand(chunks, per, generator=draws).argsort(1)[:, :k].sort(1).values


def bits(coding: Coding, k: int, per: int) -> int:
    """Bits of one chunk, written another way: every l is tried."""
    wide = max(1, (per - 1).bit_length())
    if coding == "fano":
        return min(k * low + k + ((per - 1) >> low) for low in range(wide + 1)) if k else 0
    return k * wide if coding == "packed" else per


@given(
    seed=st.integers(0, 2**32),
    per=st.integers(1, 300),
    chunks=st.integers(0, 4),
    share=st.floats(0, 1),
    coding=st.sampled_from(CODINGS),
)
def test_places_survive_and_have_the_bytes_stated(
    seed: int, per: int, chunks: int, share: float, coding: Coding
) -> None:
    indices = draw(seed, round(share * per), per, chunks)
    k = indices.shape[1]
    side = _indices.write(indices, per, coding)
    assert side.numel() == _indices.nbytes(coding, k, per, chunks)
    assert 0 <= 8 * side.numel() - chunks * bits(coding, k, per) < (16 if coding == "fano" else 8)
    assert torch.equal(_indices.read(side, k, per, chunks, CODER, coding), indices)


@given(
    seed=st.integers(0, 2**32),
    per=st.integers(1, 300),
    chunks=st.integers(0, 4),
    share=st.floats(0, 1),
)
def test_adding_at_places_is_reading_and_adding(
    seed: int, per: int, chunks: int, share: float
) -> None:
    indices = draw(seed, round(share * per), per, chunks)
    k = indices.shape[1]
    values, total = torch.randn(chunks, k), torch.randn(chunks, per)
    expected = total.scatter_add(1, indices, values)
    _indices.add(_indices.write(indices, per), values, total, CODER)
    assert torch.equal(total, expected)


@pytest.mark.parametrize(("k", "per"), [(9, 100), (9, 20), (1, 5)])
@given(noise=st.binary(min_size=64, max_size=64))
def test_adding_refuses_what_reading_refuses(k: int, per: int, noise: bytes) -> None:
    side = torch.frombuffer(bytearray(noise), dtype=torch.uint8)[
        : _indices.smallest_nbytes(k, per, 2)
    ]
    values, total = torch.randn(2, k), torch.zeros(2, per)
    told, added = [], True
    for act in (
        lambda: _indices.read(side, k, per, 2, CODER),
        lambda: _indices.add(side, values, total, CODER),
    ):
        try:
            act()
        except PayloadError as error:
            told.append(str(error))
            added = False
        else:
            told.append("")
    assert told[0] == told[1]
    if added:
        assert torch.equal(
            total, torch.zeros(2, per).scatter_add(1, _indices.read(side, k, per, 2, CODER), values)
        )


@given(per=st.integers(1, 300), chunks=st.integers(1, 4))
def test_the_smallest_is_the_smallest_and_never_falls_as_k_grows(per: int, chunks: int) -> None:
    sizes = [_indices.smallest_nbytes(k, per, chunks) for k in range(per + 1)]
    assert sizes == sorted(sizes)
    assert sizes == [
        min(_indices.nbytes(coding, k, per, chunks) for coding in CODINGS) for k in range(per + 1)
    ]
    assert sizes[-1] == (chunks * per + 7) // 8  # the bitmap bounds them all


@pytest.mark.parametrize(
    ("k", "per", "coding", "nbytes"),
    [
        (64, 4096, "fano", 64),
        (1, 4096, "packed", 2),
        (512, 4096, "fano", 320),
        (1024, 4096, "bitmap", 512),
        (1500, 4096, "bitmap", 512),
        (10_486, 2**20, "fano", 11_224),
    ],
)
def test_known_sizes(k: int, per: int, coding: Coding, nbytes: int) -> None:
    assert (_indices.smallest(k, per), _indices.smallest_nbytes(k, per)) == (coding, nbytes)


def test_every_set_of_places_has_its_own_bytes() -> None:
    for coding, k in itertools.product(CODINGS, range(7)):
        all_sets = list(itertools.combinations(range(6), k))
        told = {
            tuple(
                _indices.write(
                    torch.tensor([indices], dtype=torch.int64).view(1, k), 6, coding
                ).tolist()
            )
            for indices in all_sets
        }
        assert len(told) == len(all_sets)


@pytest.mark.parametrize(
    ("indices", "why"),
    [
        ([[0, 1, 10]], "an index beyond its chunk of 10"),
        ([[0, 5, 5]], "do not ascend"),
        ([[5, 4, 6]], "do not ascend"),
    ],
)
def test_corrupted_packed_places_are_refused(indices: list[list[int]], why: str) -> None:
    side = _indices.write(torch.tensor(indices), 16, "packed")
    with pytest.raises(PayloadError, match=why):
        _indices.read(side, 3, 10, 1, CODER, "packed")


@pytest.mark.parametrize("coding", ["bitmap", "fano"])
def test_a_mark_too_many_or_too_few_is_refused(coding: Coding) -> None:
    good = _indices.write(draw(0, 9, 100, 2), 100, coding)
    for byte in (-6, -4, -2):
        bad = good.clone()
        bad[byte] ^= 4
        with pytest.raises(PayloadError, match="a chunk of other than 9 indices"):
            _indices.read(bad, 9, 100, 2, CODER, coding)


def test_low_bits_that_do_not_ascend_or_lie_beyond_are_refused() -> None:
    side = _indices.write(
        torch.tensor([[64, 65]]), 1000, "fano"
    )  # 8 low bits each, so a byte: 64, 65
    side[0] = 65
    with pytest.raises(PayloadError, match="do not ascend"):
        _indices.read(side, 2, 1000, 1, CODER, "fano")
    side = _indices.write(torch.tensor([[3, 999]]), 1000, "fano")
    side[:2] = 255
    with pytest.raises(PayloadError, match="an index beyond its chunk of 1000"):
        _indices.read(side, 2, 1000, 1, CODER, "fano")


def test_another_length_is_refused() -> None:
    for coding in CODINGS:
        with pytest.raises(PayloadError, match="it was cut or is of another span"):
            _indices.read(
                _indices.write(draw(0, 9, 100, 2), 100, coding)[:-1], 9, 100, 2, CODER, coding
            )
