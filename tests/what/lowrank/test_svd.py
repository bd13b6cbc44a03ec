from typing import Any

import pytest
import torch
from torch import Tensor

from thinwire.core import Part, Spec
from thinwire.errors import StrategyError
from thinwire.testing import contexts, specs
from thinwire.what import cast, chain, svd

SPEC = Spec(
    (
        Part("w", (60, 40), 0, "matrix"),
        Part("b", (30,), 2400, "vector"),
        Part("v", (60, 40), 2430, "matrix"),
    ),
    0,
    4830,
    torch.float32,
)


def through(codec: svd | chain, x: Tensor, spec: Spec = SPEC, step: int = 0) -> Tensor:
    ctx = contexts(step)[1]
    state = codec.init(spec, ctx)
    payload = codec.encode(x, spec, state, ctx)
    assert payload.numel() == codec.nbytes(spec)
    return codec.decode(payload, spec, state, ctx, 1)


def best(m: Tensor, rank: int) -> Tensor:
    return torch.linalg.svdvals(m.double())[rank:].norm()


def decaying(power: float, seed: int = 0) -> Tensor:
    """A 60 × 40 matrix with singular values j^-power."""
    draws = torch.Generator().manual_seed(seed)
    u, v = (
        torch.linalg.qr(torch.randn(n, 40, generator=draws, dtype=torch.float64)).Q
        for n in (60, 40)
    )
    return (u * torch.arange(1.0, 41).double() ** -power @ v.T).float()


@pytest.mark.parametrize("rank", [1, 3, 20])
@pytest.mark.parametrize("power", [0.0, 0.5, 2.0])
def test_exact_is_the_best_of_its_rank(rank: int, power: float) -> None:
    m = decaying(power)
    x = torch.cat([m.view(-1), torch.randn(30), 3 * m.flip(0).view(-1)])
    sent = through(svd(rank, exact=True), x)
    assert torch.allclose((sent[:2400].view(60, 40) - m).norm().double(), best(m, rank), rtol=1e-4)
    assert torch.allclose(
        (sent[2430:].view(60, 40) - 3 * m.flip(0)).norm().double(), 3 * best(m, rank), rtol=1e-4
    )
    assert torch.equal(sent[2400:2430], x[2400:2430])


@pytest.mark.parametrize(
    ("iterations", "power", "most"),
    [(0, 1.0, (1 + 4 / 7) ** 0.5), (1, 1.0, 1.01), (1, 0.3, 1.03), (3, 0.3, 1.01)],
)
def test_a_sketch_is_within_the_stated_factor(iterations: int, power: float, most: float) -> None:
    m = decaying(power)
    x = torch.cat([m.view(-1), torch.zeros(2430)])
    codec = svd(4, iterations=iterations)
    ratios = [
        float((through(codec, x, step=step)[:2400].view(60, 40) - m).norm() / best(m, 4))
        for step in range(20)
    ]
    assert min(ratios) > 1 - 1e-4
    assert 1 + 1e-6 < sum(ratios) / len(ratios) < most


def test_a_sketch_as_wide_as_the_matrix_is_exact() -> None:
    x = torch.randn(4830)
    assert torch.equal(through(svd(15, oversample=30), x), through(svd(15, exact=True), x))


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("size", [1e-36, 1e28])
def test_very_small_and_very_large_matrices_keep_their_accuracy(exact: bool, size: float) -> None:
    m = decaying(1.0)
    x = torch.cat([m.view(-1), torch.zeros(2430)])
    sent = through(svd(4, exact=exact), x * size) / size
    assert torch.allclose(sent, through(svd(4, exact=exact), x), atol=1e-4)


def test_a_bad_value_spoils_its_matrix_and_no_other() -> None:
    x = torch.ones(4830)
    x[5] = float("inf")
    sent = through(svd(2), x)
    assert sent[:2400].isnan().all()
    assert torch.allclose(sent[2400:], x[2400:], atol=1e-4)


def test_factors_may_be_said_shorter() -> None:
    m = decaying(1.0)
    x = torch.cat([m.view(-1), torch.zeros(2430)])
    codec = svd(4, exact=True) >> cast()
    assert codec.nbytes(SPEC) == svd(4).nbytes(SPEC) // 2
    error = (through(codec, x) - x).norm() / best(m, 4)
    assert 1 < error < 1.01


def test_what_two_factors_would_not_shrink_travels_whole() -> None:
    assert svd(2).nbytes(specs()["many parts"]) == 4 * (
        7 + 2 * (24 + 20) + 1 + 2 * (9 + 8) + 24 + 33 + 5
    )
    assert svd(40).nbytes(SPEC) == 4 * 4830


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"rank": 0}, "a factor has at least 1 column"),
        ({"rank": 2, "oversample": 1}, "a sketch needs at least 2 columns more"),
        ({"rank": 2, "iterations": -1}, "a count is 0 or more"),
    ],
)
def test_a_wrong_argument_is_refused(settings: dict[str, Any], told: str) -> None:
    with pytest.raises(StrategyError) as caught:
        svd(**settings)
    assert told in str(caught.value)


def test_all_wrong_arguments_are_told_at_once() -> None:
    with pytest.raises(StrategyError) as caught:
        svd(0, oversample=0, iterations=-1)
    assert len(caught.value.reasons) == 3
