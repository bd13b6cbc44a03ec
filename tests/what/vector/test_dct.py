import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from thinwire.core import Part, Spec, State
from thinwire.errors import StrategyError
from thinwire.testing import contexts
from thinwire.what import chain, dct, feedback, topk, uniform

SEAT = contexts()[1]


def span(*shapes: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Spec:
    parts, at = [], 0
    for i, shape in enumerate(shapes):
        parts.append(Part(f"p{i}", shape, at, "matrix" if len(shape) > 1 else "vector"))
        at = parts[-1].end
    return Spec(tuple(parts), 0, at, dtype)


def core_of(codec: dct, x: Tensor, spec: Spec) -> Tensor:
    return codec.split(x, spec, State(), SEAT)[0]


def through(codec: dct | chain, x: Tensor, spec: Spec) -> Tensor:
    state = codec.init(spec, SEAT)
    return codec.decode(codec.encode(x, spec, state, SEAT), spec, state, SEAT, 1)


@given(
    rows=st.integers(1, 40),
    columns=st.integers(1, 40),
    more=st.integers(1, 30),
    size=st.integers(2, 17),
)
def test_back_it_is_the_same_as_long_and_as_many(
    rows: int, columns: int, more: int, size: int
) -> None:
    spec, codec = span((rows, columns), (more,)), dct(size)
    x = torch.randn(
        spec.numel, generator=torch.Generator().manual_seed(rows * columns), dtype=torch.float32
    )
    core = core_of(codec, x, spec)
    assert core.numel() == codec.core_numel(spec) == spec.numel
    assert codec.nbytes(spec) == 4 * spec.numel
    assert torch.allclose(core.norm(), x.norm(), rtol=1e-5)
    assert torch.allclose(through(codec, x, spec), x, atol=1e-5)


def test_it_is_the_cosine_transform_as_written() -> None:
    x = torch.randn(4, 4, dtype=torch.float64)
    expected = torch.zeros(4, 4, dtype=torch.float64)
    for k in range(4):
        for j in range(4):
            weight = (math.sqrt(0.25) if k == 0 else math.sqrt(0.5)) * (
                math.sqrt(0.25) if j == 0 else math.sqrt(0.5)
            )
            for a in range(4):
                for b in range(4):
                    wave = math.cos(math.pi * (2 * a + 1) * k / 8) * math.cos(
                        math.pi * (2 * b + 1) * j / 8
                    )
                    expected[k, j] += weight * wave * x[a, b]
    assert torch.allclose(
        core_of(dct(4), x.view(-1), span((4, 4), dtype=torch.float64)).view(4, 4), expected
    )


def test_a_wave_is_one_frequency_and_a_constant_the_first() -> None:
    wave = torch.cos(math.pi * (2 * torch.arange(8.0) + 1) * 3 / 16)
    core = core_of(dct(8), wave, Spec((), 0, 8, torch.float32))
    assert core.abs().gt(1e-5).nonzero().view(-1).tolist() == [3]
    core = core_of(dct(8), torch.ones(128), span((16, 8)))
    assert core.abs().gt(1e-5).nonzero().view(-1).tolist() == [0, 64]  # one of each tile


def test_full_tiles_come_first_and_edges_are_smaller() -> None:
    spec = span((5,), (9, 10))
    x = torch.arange(95.0)
    core = core_of(dct(4), x, spec)
    tile = x[5:].view(9, 10)[4:8, 4:8]  # the last of the four full ones
    assert torch.allclose(core[48:64], core_of(dct(4), tile.reshape(-1), span((4, 4))), atol=1e-4)
    assert torch.allclose(core[-2], x[-2:].sum() / math.sqrt(2))  # the corner: one row of two


def test_topk_keeps_as_many_of_every_full_tile() -> None:
    spec = span((3,), (20, 24))
    x = torch.randn(spec.numel)
    codec = dct(8) >> topk(4, per=64)
    sent = through(codec, x, spec)
    kept = core_of(dct(8), sent, spec).view(-1)[: 6 * 64].view(6, 64)
    assert (kept.abs() > 1e-5).sum(1).tolist() == [4] * 6


def test_smooth_matrices_are_said_better_than_by_their_largest_entries() -> None:
    rows, columns = torch.linspace(0, 3, 64)[:, None], torch.linspace(0, 5, 64)
    x = (
        torch.sin(rows) * torch.cos(columns)
        + 0.01 * torch.randn(64, 64, generator=torch.Generator().manual_seed(0))
    ).view(-1)
    spec = span((64, 64))
    error = (through(dct(64) >> topk(32, per=4096), x, spec) - x).norm() / x.norm()
    assert 0.01 < error < 0.1
    assert (through(topk(32, per=4096) >> uniform(8), x, spec) - x).norm() / x.norm() > 0.9


def test_white_noise_gains_nothing() -> None:
    x = torch.randn(64 * 64, generator=torch.Generator().manual_seed(0))
    errors = [
        (through(codec, x, span((64, 64))) - x).norm() / x.norm()
        for codec in (dct(64) >> topk(409), topk(409) >> uniform(8))
    ]
    assert abs(errors[0] - errors[1]) < 0.02


def test_a_bad_value_spoils_its_tile_and_no_other() -> None:
    x = torch.ones(16 * 8)
    x[5] = float("nan")
    finite = through(dct(8), x, span((16, 8))).view(2, 64).isfinite()
    assert finite.any(1).tolist() == [False, True]


def test_matrices_are_made_once() -> None:
    from thinwire.kernels.cosines import matrix

    matrix.cache_clear()
    for _ in range(3):
        through(dct(8), torch.randn(64), span((8, 8)))
    assert matrix.cache_info().misses == 1


def test_demo_can_be_written() -> None:
    codec = feedback(dct(64) >> topk(32, per=4096), decay=0.999)
    spec = span((768, 768))
    assert codec.nbytes(spec) == topk(32, per=4096).nbytes(spec)
    assert topk(32, per=4096).core_numel(spec) == 144 * 32


def test_a_tile_has_at_least_two_rows() -> None:
    with pytest.raises(
        StrategyError, match=r"dct\(size=1\): a tile has at least 2 rows and columns"
    ):
        dct(1)
