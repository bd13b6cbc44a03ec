from typing import Any

import pytest
import torch
from torch import Tensor

from thinwire.core import Part, Spec
from thinwire.errors import StrategyError
from thinwire.testing import contexts
from thinwire.what import cast, chain, svd, tucker

SEAT = contexts()[1]


def span(*shapes: tuple[int, ...]) -> Spec:
    parts: list[Part] = []
    for i, shape in enumerate(shapes):
        parts.append(
            Part(
                f"p{i}",
                shape,
                parts[-1].end if parts else 0,
                "matrix" if len(shape) > 1 else "vector",
            )
        )
    return Spec(tuple(parts), 0, parts[-1].end, torch.float32)


def through(codec: tucker | svd | chain, x: Tensor, spec: Spec) -> Tensor:
    state = codec.init(spec, SEAT)
    payload = codec.encode(x, spec, state, SEAT)
    assert payload.numel() == codec.nbytes(spec)
    return codec.decode(payload, spec, state, SEAT, 1)


def of_ranks(shape: tuple[int, ...], ranks: tuple[int, ...], seed: int = 0) -> Tensor:
    """A tensor with so many directions along each dimension."""
    draws = torch.Generator().manual_seed(seed)
    x = torch.randn(ranks, generator=draws)
    for axis, (length, rank) in enumerate(zip(shape, ranks, strict=True)):
        x = torch.tensordot(
            torch.randn(length, rank, generator=draws), x, dims=([1], [axis])
        ).movedim(0, axis)
    return x.reshape(-1)


def test_a_tensor_of_few_directions_is_exact() -> None:
    spec = span((16, 12, 3, 3), (5,), (16, 12, 3, 3))
    x = torch.cat(
        [
            of_ranks((16, 12, 3, 3), (4, 3, 3, 2)),
            torch.randn(5),
            1e-30 * of_ranks((16, 12, 3, 3), (4, 3, 1, 3), 1),
        ]
    )
    sent = through(tucker(0.25), x, spec)
    assert (sent - x)[:1733].norm() < 1e-4 * x.norm()
    assert ((sent - x)[1733:] * 1e30).norm() < 1e-4 * (x[1733:] * 1e30).norm()
    assert tucker(0.25).nbytes(spec) == 4 * (2 * (4 * 3 * 9 + 16 * 4 + 12 * 3) + 5)


@pytest.mark.parametrize("seed", range(5))
def test_the_error_is_between_the_worst_dimension_and_all_together(seed: int) -> None:
    spec, shape = span((16, 12, 8)), (16, 12, 8)
    x = of_ranks(shape, (16, 12, 8), seed) + torch.randn(
        1536, generator=torch.Generator().manual_seed(seed)
    )
    lost = []
    for axis, kept in enumerate((4, 3, 2)):
        flat = x.view(shape).movedim(axis, 0).reshape(shape[axis], -1)
        lost.append(float(torch.linalg.svdvals(flat)[kept:].norm()))
    error = float((through(tucker(0.25), x, spec) - x).norm())
    assert max(lost) * (1 - 1e-4) <= error <= sum(tail**2 for tail in lost) ** 0.5 * (1 + 1e-4)


def test_a_matrix_is_said_as_by_its_singular_vectors() -> None:
    spec, x = span((40, 40)), torch.randn(1600)
    assert torch.allclose(
        through(tucker(0.1), x, spec), through(svd(4, exact=True), x, spec), atol=1e-4
    )


def test_a_long_matrix_gets_no_directions_that_say_nothing() -> None:
    spec, x = (
        span((256, 64), (64, 256)),
        torch.randn(2 * 16384, generator=torch.Generator().manual_seed(0)),
    )
    assert tucker(0.05).nbytes(spec) == 2 * 4 * (
        4 * 4 + 4 * 256 + 4 * 64
    )  # 5 % of 256 are 13, of which 9 find nothing left
    assert torch.allclose(
        through(tucker(0.05), x, spec), through(svd(4, exact=True), x, spec), atol=1e-4
    )


def test_the_longest_dimension_of_a_folded_matrix_has_no_more_directions_than_the_rest() -> None:
    assert tucker(0.05, fold=4).nbytes(span((80, 256))) == 4 * (
        1 * 1 * 1 + 4 * 1 + 20 * 1 + 256 * 1
    )


def test_heads_may_share_directions() -> None:
    spec = span((48, 32), (7, 32))
    x = torch.cat([of_ranks((4, 12, 32), (1, 3, 3)), torch.randn(224)])
    folded, flat = (
        through(codec, x, spec)[:1536] - x[:1536] for codec in (tucker(0.25, fold=4), tucker(0.02))
    )
    assert folded.norm() < 1e-4 * x.norm() < 0.1 * x.norm() < flat.norm()
    assert tucker(0.25, fold=4).nbytes(span((48, 32))) == 4 * (1 * 3 * 3 + 4 * 1 + 12 * 3 + 32 * 3)


def test_what_would_not_shrink_travels_whole() -> None:
    spec = span((3, 3), (5, 1), (9,), (4, 4, 2, 2, 2))
    assert tucker(0.9).nbytes(spec) == 4 * spec.numel
    x = torch.randn(spec.numel)
    assert torch.equal(through(tucker(0.9), x, spec), x)


def test_a_bad_value_spoils_its_tensor_and_no_other() -> None:
    spec, x = span((8, 8, 3, 3), (8, 8, 3, 3)), torch.ones(1152)
    x[5] = float("inf")
    sent = through(tucker(0.25), x, spec)
    assert sent[:576].isnan().all()
    assert torch.allclose(sent[576:], x[576:], atol=1e-4)


def test_core_and_factors_may_be_said_shorter() -> None:
    spec, x = span((16, 12, 3, 3)), of_ranks((16, 12, 3, 3), (4, 3, 3, 3))
    codec = tucker(0.25) >> cast()
    assert codec.nbytes(spec) == tucker(0.25).nbytes(spec) // 2
    assert 1e-4 < (through(codec, x, spec) - x).norm() / x.norm() < 1e-2


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"fraction": 0.0}, "lies in (0, 1)"),
        ({"fraction": 1.0}, "lies in (0, 1)"),
        ({"fraction": float("nan")}, "lies in (0, 1)"),
        ({"fraction": 0.5, "fold": 1}, "rows are folded in 2 blocks or more"),
        ({"fraction": 0.5, "fold": -2}, "rows are folded in 2 blocks or more"),
    ],
)
def test_a_wrong_argument_is_refused(settings: dict[str, Any], told: str) -> None:
    with pytest.raises(StrategyError) as caught:
        tucker(**settings)
    assert told in str(caught.value)


def test_all_wrong_arguments_are_told_at_once() -> None:
    with pytest.raises(StrategyError) as caught:
        tucker(2.0, fold=1)
    assert len(caught.value.reasons) == 2
