from dataclasses import replace

import pytest
import torch
from torch import Tensor

from thinwire.core import Codec, Part, Spec, State
from thinwire.drive.local import run
from thinwire.errors import StrategyError
from thinwire.how import gather
from thinwire.testing import contexts, specs
from thinwire.what import lowrank

SPEC = Spec(
    (Part("w", (30, 20), 0, "matrix"), Part("b", (30,), 600, "vector")), 0, 630, torch.float32
)


def flights(
    codec: Codec, xs: dict[int, Tensor], steps: int
) -> tuple[list[Tensor], dict[int, State]]:
    """The totals of several flights of the same values, and the states after them."""
    ranks = tuple(xs)
    states = {rank: codec.init(SPEC, ctx) for rank, ctx in contexts(group=ranks).items()}
    totals = []
    for step in range(steps):
        at = contexts(step, group=ranks)
        carried = {
            rank: gather().carry(
                codec, xs[rank].clone(), SPEC, State(children={"codec": states[rank]}), at[rank]
            )
            for rank in ranks
        }
        totals.append(run(carried)[ranks[0]].total)
    return totals, states


def test_a_sum_of_rank_r_is_exact_at_once() -> None:
    draws = torch.Generator().manual_seed(0)
    left, right = torch.randn(30, 2, generator=draws), torch.randn(2, 20, generator=draws)
    xs = {
        rank: torch.cat(
            [(left @ torch.diag(torch.tensor([1.0, rank])) @ right).view(-1), torch.randn(30)]
        )
        for rank in (0, 1, 2)
    }
    totals, _ = flights(lowrank(2), xs, 1)
    assert torch.allclose(totals[0], sum(xs.values()), atol=1e-4)  # type: ignore[arg-type]


def test_warm_starts_reach_the_best_approximation() -> None:
    xs = {rank: torch.randn(630, generator=torch.Generator().manual_seed(rank)) for rank in (0, 1)}
    matrix = (xs[0] + xs[1])[:600].view(30, 20)
    best = torch.linalg.svdvals(matrix)[4:].norm()
    errors = [
        (total[:600].view(30, 20) - matrix).norm() / best
        for total in flights(lowrank(4), xs, 60)[0]
    ]
    assert errors[0] > 1.05
    assert 1 - 1e-5 < errors[-1] < 1.01


def test_warm_starts_are_the_same_on_all_ranks() -> None:
    xs = {rank: torch.randn(630) for rank in (0, 1, 2)}
    _, states = flights(lowrank(3), xs, 3)
    starts = [state["q/w"].value for state in states.values()]
    assert starts[0].shape == (20, 3)
    assert all(torch.equal(start, starts[0]) for start in starts)
    assert float(starts[0].abs().max()) == 1.0


def test_gradients_near_the_smallest_number_do_not_vanish() -> None:
    xs = {rank: torch.randn(630) * 1e-36 for rank in (0, 1)}
    totals, _ = flights(lowrank(4), xs, 40)
    part = totals[-1][:600] / 1e-36
    whole = (xs[0] + xs[1])[:600] / 1e-36
    assert 0.3 < part.norm() / whole.norm() <= 1.01


def test_what_two_factors_would_not_shrink_travels_whole() -> None:
    many = specs()["many parts"]
    assert list(lowrank(1).init(many, contexts()[1]).leaves) == ["q/p1", "q/p3", "q/p4"]
    assert list(lowrank(2).init(many, contexts()[1]).leaves) == [
        "q/p1",
        "q/p3",
    ]  # 2 (2 + 12) numbers for (2, 3, 4) are no gain
    assert lowrank(2).nbytes(many) == 4 * (7 + 2 * (24 + 20) + 1 + 2 * (9 + 8) + 24 + 33 + 5)


def resnet18() -> Spec:
    """The parameters of the ResNet-18 for 32 × 32 images and 10 classes, in PyTorch's order."""
    shapes: list[tuple[int, ...]] = [(64, 3, 3, 3), (64,), (64,)]
    before = 64
    for width in (64, 128, 256, 512):
        for _ in range(2):
            shapes += [
                (width, before, 3, 3),
                (width,),
                (width,),
                (width, width, 3, 3),
                (width,),
                (width,),
            ]
            if before != width:
                shapes += [(width, before, 1, 1), (width,), (width,)]
            before = width
    shapes += [(10, 512), (10,)]
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


@pytest.mark.parametrize(("rank", "mib"), [(1, 4.21), (2, 7.53), (4, 14.18), (7, 24.16)])
def test_bytes_of_an_epoch_of_resnet18_are_the_published_ones(rank: int, mib: float) -> None:
    spec = resnet18()
    assert spec.numel == 11_173_962
    assert round(24 * lowrank(rank).nbytes(spec) / 2**20, 2) == mib


def test_matrices_of_one_shape_are_orthogonalised_in_one_batch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shapes, plain = [], torch.linalg.qr
    monkeypatch.setattr(torch.linalg, "qr", lambda a: shapes.append(tuple(a.shape)) or plain(a))
    parts = tuple(
        Part(f"w{at}", shape, at, "matrix")
        for at, shape in [(0, (8, 9)), (72, (8, 9)), (144, (7, 9)), (207, (8, 9))]
    )
    spec = Spec(parts, 0, 279, torch.float32)
    ctx = replace(contexts()[1], group=(1,))
    run(
        {
            1: gather().carry(
                lowrank(2), torch.randn(279), spec, gather().init(lowrank(2), spec, ctx), ctx
            )
        }
    )
    assert sorted(shapes) == [(1, 7, 2), (3, 8, 2)]


def test_a_rank_is_at_least_one() -> None:
    with pytest.raises(StrategyError, match=r"lowrank\(rank=0\): a factor has at least 1 column"):
        lowrank(0)
