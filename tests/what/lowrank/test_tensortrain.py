from typing import Any

import pytest
import torch
from torch import Tensor

from thinwire.core import Part, Spec
from thinwire.errors import StrategyError
from thinwire.testing import contexts
from thinwire.what import cast, chain, svd, tensortrain

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


def through(codec: tensortrain | svd | chain, x: Tensor, spec: Spec) -> Tensor:
    state = codec.init(spec, SEAT)
    payload = codec.encode(x, spec, state, SEAT)
    assert payload.numel() == codec.nbytes(spec)
    return codec.decode(payload, spec, state, SEAT, 1)


def train(outputs: int, inputs: int, kernel: int, rank: int, seed: int = 0) -> Tensor:
    """outputs × inputs × kernel, a train outputs - kernel - inputs of this rank."""
    draws = torch.Generator().manual_seed(seed)
    a, b, c = (
        torch.randn(shape, generator=draws)
        for shape in ((outputs, rank), (rank, kernel, rank), (rank, inputs))
    )
    return torch.einsum("or,rks,si->oik", a, b, c).reshape(-1)


def test_a_train_of_rank_r_is_exact() -> None:
    spec = span((16, 12, 3, 3), (5,), (16, 12, 3, 3))
    x = torch.cat([train(16, 12, 9, 3), torch.randn(5), 1e-30 * train(16, 12, 9, 2, 1)])
    sent = through(tensortrain(3), x, spec)
    assert (sent - x)[:1733].norm() < 1e-4 * x.norm()
    assert ((sent - x)[1733:] * 1e30).norm() < 1e-4 * (x[1733:] * 1e30).norm()
    assert tensortrain(3).nbytes(spec) == 4 * (2 * (16 * 3 + 3 * 9 * 3 + 3 * 12) + 5)
    assert (through(tensortrain(2), x, spec) - x)[:1728].norm() > 0.1 * x[:1728].norm()


@pytest.mark.parametrize("seed", range(5))
def test_the_error_is_between_the_worst_cut_and_all_together(seed: int) -> None:
    spec = span((16, 12, 3, 3))
    x = train(16, 12, 9, 3, seed) + 4 * torch.randn(
        1728, generator=torch.Generator().manual_seed(seed)
    )
    ordered = x.view(16, 12, 9).movedim(2, 1)
    lost = [
        float(torch.linalg.svdvals(ordered.reshape(rows, -1))[3:].norm()) for rows in (16, 16 * 9)
    ]
    error = float((through(tensortrain(3), x, spec) - x).norm())
    assert max(lost) * (1 - 1e-4) <= error <= sum(tail**2 for tail in lost) ** 0.5 * (1 + 1e-4)


def test_a_matrix_is_said_as_by_its_singular_vectors() -> None:
    spec, x = span((40, 30)), torch.randn(1200)
    assert torch.allclose(
        through(tensortrain(4), x, spec), through(svd(4, exact=True), x, spec), atol=1e-4
    )
    assert tensortrain(4).nbytes(spec) == svd(4).nbytes(spec)


def test_heads_stand_in_the_middle() -> None:
    spec = span((48, 32))
    x = train(12, 32, 4, 2).view(12, 32, 4).movedim(2, 0).reshape(-1)  # 4 heads of 12 rows
    assert (through(tensortrain(2, fold=4), x, spec) - x).norm() < 1e-4 * x.norm()
    assert tensortrain(2, fold=4).nbytes(spec) == 4 * (12 * 2 + 2 * 4 * 2 + 2 * 32)
    assert (
        through(tensortrain(2), x, spec) - x
    ).norm() < 1e-4 * x.norm()  # the last joint alone is of rank 2, too, at more bytes
    assert tensortrain(2).nbytes(spec) == 4 * 2 * (48 + 32)


def test_what_would_not_shrink_travels_whole() -> None:
    spec = span((3, 3), (5, 1), (9,), (4, 4, 2, 2, 2))
    assert tensortrain(9).nbytes(spec) == 4 * spec.numel
    x = torch.randn(spec.numel)
    assert torch.equal(through(tensortrain(9), x, spec), x)


def test_a_bad_value_spoils_its_tensor_and_no_other() -> None:
    spec, x = span((8, 8, 3, 3), (8, 8, 3, 3)), torch.ones(1152)
    x[5] = float("inf")
    sent = through(tensortrain(2), x, spec)
    assert sent[:576].isnan().all()
    assert torch.allclose(sent[576:], x[576:], atol=1e-4)


def test_factors_may_be_said_shorter() -> None:
    spec, x = span((16, 12, 3, 3)), train(16, 12, 9, 3)
    codec = tensortrain(3) >> cast()
    assert codec.nbytes(spec) == tensortrain(3).nbytes(spec) // 2
    assert 1e-4 < (through(codec, x, spec) - x).norm() / x.norm() < 1e-2


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"rank": 0}, "joined by at least 1 direction"),
        ({"rank": 2, "fold": 1}, "rows are folded in 2 blocks or more"),
        ({"rank": 2, "fold": -2}, "rows are folded in 2 blocks or more"),
    ],
)
def test_a_wrong_argument_is_refused(settings: dict[str, Any], told: str) -> None:
    with pytest.raises(StrategyError) as caught:
        tensortrain(**settings)
    assert told in str(caught.value)


def test_all_wrong_arguments_are_told_at_once() -> None:
    with pytest.raises(StrategyError) as caught:
        tensortrain(0, fold=1)
    assert len(caught.value.reasons) == 2
