from typing import Any

import pytest
import torch
from torch import Tensor

from thinwire.core import Part, Spec
from thinwire.errors import PayloadError, StrategyError
from thinwire.testing import contexts, specs
from thinwire.what import als, cast, chain, cp, svd, tensortrain, uniform


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


def through(
    codec: cp | als | svd | tensortrain | chain, x: Tensor, spec: Spec, step: int = 0
) -> Tensor:
    ctx = contexts(step)[1]
    state = codec.init(spec, ctx)
    payload = codec.encode(x, spec, state, ctx)
    assert payload.numel() == codec.nbytes(spec)
    return codec.decode(payload, spec, state, ctx, 1)


def nbytes(codec: cp | als | svd | tensortrain | chain, spec: Spec) -> int:
    size = codec.nbytes(spec)
    assert size is not None
    return size


def error(codec: cp | als | svd | tensortrain | chain, x: Tensor, step: int = 0) -> float:
    """||sent - x|| / ||x|| of a tensor that travels alone."""
    sent = through(codec, x.reshape(-1), span(tuple(x.shape), dtype=x.dtype), step).view(x.shape)
    return float((sent.double() - x.double()).norm() / x.double().norm())


def factors(codec: cp, x: Tensor, step: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """What is sent of a tensor whose longest dimension is the last: (r, n) each, float64."""
    lengths = [codec.rank * length for length in x.shape]
    core, _ = codec.split(
        x.reshape(-1),
        span(tuple(x.shape)),
        codec.init(span(tuple(x.shape)), contexts(step)[1]),
        contexts(step)[1],
    )
    a, b, c = (rows.view(codec.rank, -1).double() for rows in core.split(lengths))
    return a, b, c


def terms(shape: tuple[int, int, int], rank: int, seed: int = 0, alike: float = 0.0) -> Tensor:
    """A sum of so many outer products of normal vectors; `alike` is the share that the vectors of a
    dimension have in common."""
    draws = torch.Generator().manual_seed(seed)
    a, b, c = (torch.randn(rank, length, generator=draws, dtype=torch.float64) for length in shape)
    a, b, c = ((1 - alike) ** 0.5 * rows + alike**0.5 * rows[:1] for rows in (a, b, c))
    return torch.einsum("ra,rb,rc->abc", a, b, c)


def noisy(seed: int = 0) -> Tensor:
    draws = torch.Generator().manual_seed(seed)
    x = terms((24, 9, 32), 6, seed).float()
    return x + x.std() * torch.randn(x.shape, generator=draws)


SHAPES = [
    (32, 24, 9),
    pytest.param((9, 32, 24), marks=pytest.mark.long),
    pytest.param((24, 9, 32), marks=pytest.mark.long),
]


@pytest.mark.parametrize(("dtype", "least"), [(torch.float32, 2e-5), (torch.float64, 1e-8)])
@pytest.mark.parametrize(
    "shape",
    [
        (32, 24, 9),
        *(pytest.param(each, marks=pytest.mark.long) for each in [(9, 32, 24), (24, 9, 32)]),
    ],
)
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_a_sum_of_few_terms_is_found(
    rank: int, shape: tuple[int, int, int], dtype: torch.dtype, least: float
) -> None:
    """From most starts; from some it takes longer."""
    x = terms(shape, rank).to(dtype)
    errors = sorted(error(cp(rank, sweeps=100, ridge=0.0), x, step) for step in range(5))
    assert errors[2] < least
    assert sorted(error(cp(rank, sweeps=60), x, step) for step in range(5))[2] == pytest.approx(
        1e-3, rel=0.1
    )  # the ridge's share


@pytest.mark.parametrize(
    ("alike", "most"), [(0.5, 0.09), (0.9, 0.012), (0.99, 2e-3), (0.999, 1e-3), (1 - 1e-9, 1e-3)]
)
@pytest.mark.parametrize("rank", [3, 6, 12])
def test_terms_that_are_nearly_alike_do_no_harm(rank: int, alike: float, most: float) -> None:
    errors = [
        error(cp(rank), terms((24, 9, 32), rank, seed, alike).float(), seed) for seed in range(7)
    ]
    assert sorted(errors)[3] < most


@pytest.mark.parametrize("rank", [3, 6, 12])
def test_a_ridge_that_falls_finds_terms_that_are_alike_sooner(rank: int) -> None:
    ridge, bare = (
        sorted(
            error(
                cp(rank, sweeps=10, ridge=ridge), terms((24, 9, 32), rank, seed, 0.9).float(), seed
            )
            for seed in range(7)
        )[3]
        for ridge in (1e-3, 0.0)
    )
    assert ridge < 0.8 * bare


@pytest.mark.parametrize("ridge", [0.0, 1e-3, 1e-1])
def test_terms_that_would_grow_without_bound_are_held(ridge: float) -> None:
    """a∘a∘b + a∘b∘a + b∘a∘a is as near as one likes to two terms, which then cancel each other, and
    never two terms."""
    draws = torch.Generator().manual_seed(0)
    u, v, w = (
        torch.linalg.qr(torch.randn(length, 2, generator=draws)).Q.T for length in (16, 20, 24)
    )
    x = sum(
        torch.einsum("a,b,c->abc", u[i], v[j], w[k])
        for i, j, k in ((0, 0, 1), (0, 1, 0), (1, 0, 0))
    )
    assert isinstance(x, Tensor)
    sizes = [factor.norm(dim=1) for factor in factors(cp(2, sweeps=300, ridge=ridge), x)]
    assert (sizes[0] * sizes[1] * sizes[2]).max() < float(x.norm()) / max(
        ridge, 64 * torch.finfo(torch.float32).eps
    ) ** 0.5
    off = error(cp(2, sweeps=300, ridge=ridge), x)
    assert (0.002 if ridge == 0 else 0.02) < off < {0.0: 0.1, 1e-3: 0.25, 1e-1: 0.7}[ridge]


@pytest.mark.parametrize("sweeps", [1, 4])
@pytest.mark.parametrize("ridge", [0.001, 0.3])
def test_the_factor_that_is_fitted_last_is_the_best_for_the_others(
    ridge: float, sweeps: int
) -> None:
    x = noisy()
    a, b, c = factors(cp(5, sweeps=sweeps, ridge=ridge), x)
    across = torch.einsum("ra,rb->rab", a, b).flatten(1)  # (r, a · b); a term is across_j ∘ c_j
    flat = x.double().flatten(0, 1)
    weight = ridge * torch.diag(across.square().sum(1))
    best = torch.linalg.solve(across @ across.T + weight, across @ flat)
    assert torch.allclose(c, best, rtol=1e-3, atol=1e-4 * float(c.abs().max()))


def test_the_vectors_of_a_term_are_of_one_length() -> None:
    sizes = [factor.norm(dim=1) for factor in factors(cp(5), noisy())]
    assert torch.allclose(sizes[0], sizes[1], rtol=1e-4)
    assert torch.allclose(sizes[0], sizes[2], rtol=1e-4)


def test_more_sweeps_come_nearer_and_never_below_the_best_matrix() -> None:
    x = noisy()
    means = [
        sum(error(cp(6, sweeps=sweeps, ridge=1e-4), x, step) for step in range(15)) / 15
        for sweeps in (1, 2, 4, 10, 40)
    ]
    assert means == sorted(means, reverse=True)
    assert means[0] > 1.1 * means[-1]
    unfolded = x.double().flatten(0, 1)
    least = float(torch.linalg.svdvals(unfolded)[6:].norm() / unfolded.norm())
    assert least < means[-1] < 0.75


def test_no_more_terms_than_a_tensor_has_do_no_harm() -> None:
    x = terms((24, 9, 32), 2).float()
    assert sorted(error(cp(20, sweeps=30), x, step) for step in range(5))[-1] < 5e-3


@pytest.mark.parametrize("shape", [(60, 40), (60, 40, 1, 1), (60, 1, 40)])
def test_a_matrix_is_said_as_by_als(shape: tuple[int, ...]) -> None:
    x = torch.randn(2400)
    assert torch.equal(
        through(cp(3, sweeps=4), x, span(shape)), through(als(3, 4), x, span((60, 40)))
    )


def test_heads_may_share_terms() -> None:
    x, spec = terms((4, 12, 32), 2).float().reshape(48, 32), span((48, 32))
    assert cp(2, fold=4).nbytes(spec) == 4 * 2 * (4 + 12 + 32) < 0.7 * nbytes(svd(2), spec)
    folded = sorted(error(cp(2, fold=4, sweeps=30), x, step) for step in range(5))[2]
    assert folded < 2e-3
    assert error(svd(1), x) > 0.1
    assert cp(2, fold=5).nbytes(spec) == 4 * 2 * (48 + 32)  # 5 does not divide its rows


def test_a_convolution_of_few_terms_takes_fewer_bytes() -> None:
    x = terms((32, 24, 9), 4).float().view(32, 24, 3, 3)
    spec = span((32, 24, 3, 3))
    assert (
        cp(4).nbytes(spec)
        == 4 * 4 * (32 + 24 + 9)
        < 0.75 * nbytes(tensortrain(4), spec)
        < nbytes(svd(4), spec)
    )
    assert sorted(error(cp(4, sweeps=60), x, step) for step in range(7))[2] < 2e-3
    assert nbytes(tensortrain(3), spec) < nbytes(cp(4), spec)
    assert error(tensortrain(3), x) > 0.1


def test_tensors_of_one_shape_do_not_mix() -> None:
    spec = span((24, 9, 32), (24, 9, 32), (7,))
    size = 24 * 9 * 32
    x = torch.cat([noisy(0).view(-1), 1e-20 * noisy(1).view(-1), torch.randn(7)])
    both, alone = (
        through(cp(4), x, spec),
        through(cp(4), torch.cat([torch.zeros(size), x[size:]]), spec),
    )
    assert torch.allclose(both[size:] * 1e20, alone[size:] * 1e20, rtol=1e-3, atol=1e-3)
    assert not alone[:size].any()
    assert torch.equal(both[2 * size :], x[2 * size :])


@pytest.mark.parametrize("size", [1e-36, 1e28])
def test_very_small_and_very_large_tensors_keep_their_accuracy(size: float) -> None:
    assert error(cp(4), noisy() * size) == pytest.approx(error(cp(4), noisy()), rel=1e-3)


def test_a_bad_value_spoils_its_tensor_and_no_other() -> None:
    x = torch.ones(1152)
    x[5] = float("inf")
    sent = through(cp(2), x, span((8, 8, 3, 3), (8, 8, 3, 3)))
    assert sent[:576].isnan().all()
    assert torch.allclose(sent[576:], x[576:], atol=2e-3)


@pytest.mark.parametrize(("shorter", "most"), [(cast(), 1.001), (uniform(8), 1.03)])
def test_factors_may_be_said_shorter(shorter: cast | uniform, most: float) -> None:
    x = noisy()
    assert nbytes(cp(4) >> shorter, span((24, 9, 32))) <= 0.53 * nbytes(cp(4), span((24, 9, 32)))
    assert 0.999 < error(cp(4) >> shorter, x) / error(cp(4), x) < most


def test_what_would_not_shrink_travels_whole() -> None:
    assert cp(2).nbytes(specs()["many parts"]) == 4 * (
        7 + 2 * (24 + 20) + 1 + 2 * (9 + 8) + 2 * (2 + 3 + 4) + 33 + 5
    )
    spec = span((3, 3), (5, 1), (9,), (1, 1), (4, 4, 2, 2, 2), (1,))
    assert cp(13).nbytes(spec) == 4 * spec.numel
    x = torch.randn(spec.numel)
    assert torch.equal(through(cp(13), x, spec), x)


def test_a_cut_payload_is_refused() -> None:
    spec, ctx = span((24, 9, 32)), contexts()[1]
    state = cp(2).init(spec, ctx)
    payload = cp(2).encode(noisy().view(-1), spec, state, ctx)
    with pytest.raises(PayloadError, match="516 bytes where 520 were due"):
        cp(2).decode(payload[:-4], spec, state, ctx, 1)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"rank": 0}, "a sum of at least 1 term"),
        ({"rank": 2, "fold": 1}, "rows are folded in 2 blocks or more"),
        ({"rank": 2, "fold": -2}, "rows are folded in 2 blocks or more"),
        ({"rank": 2, "sweeps": 0}, "all factors are fitted at least once"),
        ({"rank": 2, "ridge": -0.1}, "0 or more, and finite"),
        ({"rank": 2, "ridge": float("nan")}, "0 or more, and finite"),
        ({"rank": 2, "ridge": float("inf")}, "0 or more, and finite"),
    ],
)
def test_a_wrong_argument_is_refused(settings: dict[str, Any], told: str) -> None:
    with pytest.raises(StrategyError) as caught:
        cp(**settings)
    assert told in str(caught.value)


def test_all_wrong_arguments_are_told_at_once() -> None:
    with pytest.raises(StrategyError) as caught:
        cp(0, fold=1, sweeps=0, ridge=-1.0)
    assert len(caught.value.reasons) == 4
