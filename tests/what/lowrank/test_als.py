from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from thinwire.core import Part, Spec
from thinwire.errors import PayloadError, StrategyError
from thinwire.testing import contexts, specs
from thinwire.what import als, cast, chain, svd, uniform


def span(*shapes: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Spec:
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
    return Spec(tuple(parts), 0, parts[-1].end, dtype)


def through(codec: als | svd | chain, x: Tensor, spec: Spec, step: int = 0) -> Tensor:
    ctx = contexts(step)[1]
    state = codec.init(spec, ctx)
    payload = codec.encode(x, spec, state, ctx)
    assert payload.numel() == codec.nbytes(spec)
    return codec.decode(payload, spec, state, ctx, 1)


def said(codec: als | svd | chain, m: Tensor, step: int = 0) -> Tensor:
    """A matrix alone, as it arrives."""
    return through(codec, m.reshape(-1), span(tuple(m.shape), dtype=m.dtype), step).view(m.shape)


def of_values(
    values: Tensor, rows: int = 60, columns: int = 40, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    """U, S, V in float64 of a matrix with these singular values."""
    draws = torch.Generator().manual_seed(seed)
    u, v = (
        torch.linalg.qr(torch.randn(n, len(values), generator=draws, dtype=torch.float64)).Q
        for n in (rows, columns)
    )
    return u, values.double(), v


def decaying(power: float, seed: int = 0) -> Tensor:
    """A 60 × 40 matrix with singular values j^-power."""
    u, s, v = of_values(torch.arange(1.0, 41) ** -power, seed=seed)
    return (u * s @ v.T).float()


def over_best(codec: als | svd, m: Tensor, step: int = 0) -> float:
    """The error over the least of any matrix of that rank."""
    return float(
        (said(codec, m, step) - m).double().norm()
        / torch.linalg.svdvals(m.double())[codec.rank :].norm()
    )


@pytest.mark.parametrize("power", [0.3, 1.0, 2.0])
@pytest.mark.parametrize("rank", [1, 4, 12])
def test_the_default_is_near_the_least_error_and_never_below(rank: int, power: float) -> None:
    m = decaying(power)
    ratios = [over_best(als(rank), m, step) for step in range(30)]
    assert min(ratios) > 1 - 1e-4
    assert 1 + 1e-5 < sum(ratios) / len(ratios) < 1.05


@given(
    rows=st.integers(9, 70),
    columns=st.integers(9, 70),
    power=st.floats(0.2, 2.0),
    seed=st.integers(0, 99),
)
@settings(max_examples=25)
def test_no_matrix_is_said_better_than_the_best(
    rows: int, columns: int, power: float, seed: int
) -> None:
    u, s, v = of_values(torch.arange(1.0, min(rows, columns) + 1) ** -power, rows, columns, seed)
    m = (u * s @ v.T).float()
    assert 1 - 1e-4 < over_best(als(3), m, seed) < 2
    assert over_best(als(3, sweeps=60), m, seed) < 1.02


def test_each_sweep_comes_nearer() -> None:
    m = decaying(1.0)
    means = [
        sum(over_best(als(4, sweeps), m, step) for step in range(20)) / 20
        for sweeps in (1, 2, 3, 5, 8)
    ]
    assert 1.3 < means[0] < 1.8
    assert means == sorted(means, reverse=True)
    assert 1 < means[-1] < 1.002


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("rank", [1, 3, 12])
def test_a_matrix_of_no_higher_rank_is_exact(rank: int, dtype: torch.dtype) -> None:
    """More columns than it has directions do no harm either, though their products have no
    inverse."""
    for values in (torch.ones(1), 10.0 ** -torch.arange(rank)[:3]):
        u, s, v = of_values(values)
        m = u * s @ v.T
        assert (said(als(rank), m.to(dtype)).double() - m).norm() < (
            2e-6 if dtype == torch.float32 else 1e-10
        ) * m.norm()


def test_singular_values_far_apart_are_all_kept() -> None:
    u, s, v = of_values(10.0 ** -torch.arange(40))
    m = u * s @ v.T
    for dtype, least in ((torch.float32, 3e-6), (torch.float64, 3e-8)):
        assert (said(als(12), m.to(dtype)).double() - m).norm() < least
    assert 1 <= over_best(als(4), m.float()) < 1.01


@pytest.mark.parametrize("ridge", [0.1, 0.5, 1.0])
def test_a_ridge_lowers_singular_values_and_drops_small_ones(ridge: float) -> None:
    u, s, v = of_values(torch.arange(1.0, 41) ** -1.0)
    m = u * s @ v.T
    low = (s - ridge * float(m.abs().max())).clamp(min=0)
    best = u[:, :4] * low[:4] @ v[:, :4].T
    off = [
        float((said(als(4, sweeps, ridge), m.float()).double() - best).norm())
        for sweeps in (3, 10, 100)
    ]
    assert off[0] > 1e-3 > off[2]
    assert off == sorted(off, reverse=True)
    error = float((said(als(4, 100, ridge), m.float()).double() - m).norm())
    assert error == pytest.approx(
        float((s - torch.cat([low[:4], torch.zeros(36)])).norm()), rel=1e-3
    )


def test_a_ridge_is_in_units_of_the_largest_value() -> None:
    m = decaying(1.0)
    assert torch.allclose(said(als(4, 5, 0.2), 1000 * m) / 1000, said(als(4, 5, 0.2), m), atol=1e-5)
    assert not said(als(4, 100, 2000.0), m).any()  # it leaves nothing


@pytest.mark.parametrize("size", [1e-36, 1e28])
def test_very_small_and_very_large_matrices_keep_their_accuracy(size: float) -> None:
    m = decaying(1.0)
    assert torch.allclose(said(als(4), m * size) / size, said(als(4), m), atol=1e-4)


def test_zeros_arrive_as_zeros() -> None:
    assert torch.equal(said(als(3, ridge=0.1), torch.zeros(60, 40)), torch.zeros(60, 40))
    assert torch.equal(said(als(3), torch.zeros(60, 40)), torch.zeros(60, 40))


def test_matrices_of_one_shape_do_not_mix() -> None:
    spec = span((60, 40), (60, 40), (7,))
    x = torch.cat([decaying(1.0).view(-1), 1e-20 * decaying(0.5, 1).view(-1), torch.randn(7)])
    both, alone = (
        through(als(4), x, spec),
        through(als(4), torch.cat([torch.zeros(2400), x[2400:]]), spec),
    )
    assert torch.allclose(both[2400:] * 1e20, alone[2400:] * 1e20, rtol=1e-4)
    assert torch.equal(both[4800:], x[4800:])


def test_a_bad_value_spoils_its_matrix_and_no_other() -> None:
    x = torch.ones(4800)
    x[5] = float("inf")
    sent = through(als(2), x, span((60, 40), (60, 40)))
    assert sent[:2400].isnan().all()
    assert torch.allclose(sent[2400:], x[2400:], atol=1e-4)


@pytest.mark.parametrize(("shorter", "most"), [(cast(), 1.001), (uniform(8), 1.03)])
def test_factors_may_be_said_shorter(shorter: cast | uniform, most: float) -> None:
    m = decaying(1.0)
    whole, short = als(4, sweeps=8), als(4, sweeps=8) >> shorter
    assert short.nbytes(span((60, 40))) <= 0.5 * whole.nbytes(span((60, 40)))
    assert 1 < float((said(short, m) - m).norm() / (said(whole, m) - m).norm()) < most


def test_what_two_factors_would_not_shrink_travels_whole() -> None:
    assert als(2).nbytes(specs()["many parts"]) == 4 * (
        7 + 2 * (24 + 20) + 1 + 2 * (9 + 8) + 24 + 33 + 5
    )
    assert als(40).nbytes(span((60, 40))) == 4 * 2400
    m = torch.randn(60, 40)
    assert torch.equal(said(als(40), m), m)


def test_a_cut_payload_is_refused() -> None:
    spec, ctx = span((60, 40)), contexts()[1]
    state = als(2).init(spec, ctx)
    payload = als(2).encode(torch.randn(2400), spec, state, ctx)
    with pytest.raises(PayloadError, match="796 bytes where 800 were due"):
        als(2).decode(payload[:-4], spec, state, ctx, 1)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"rank": 0}, "a factor has at least 1 column"),
        ({"rank": 2, "sweeps": 0}, "both factors are fitted at least once"),
        ({"rank": 2, "ridge": -0.1}, "0 or more, and finite"),
        ({"rank": 2, "ridge": float("nan")}, "0 or more, and finite"),
        ({"rank": 2, "ridge": float("inf")}, "0 or more, and finite"),
    ],
)
def test_a_wrong_argument_is_refused(settings: dict[str, Any], told: str) -> None:
    with pytest.raises(StrategyError) as caught:
        als(**settings)
    assert told in str(caught.value)


def test_all_wrong_arguments_are_told_at_once() -> None:
    with pytest.raises(StrategyError) as caught:
        als(0, sweeps=0, ridge=-1.0)
    assert len(caught.value.reasons) == 3
