import pytest
import torch
from torch import Tensor

from thinwire.core import Codec, Part, Spec, State
from thinwire.drive.local import run
from thinwire.errors import StrategyError
from thinwire.how import native
from thinwire.testing import contexts, specs
from thinwire.what import alternating, feedback, lowrank

SPEC = Spec(
    (Part("w", (30, 20), 0, "matrix"), Part("b", (30,), 600, "vector")), 0, 630, torch.float32
)


def flights(
    codec: Codec, xs: dict[int, Tensor], steps: int
) -> tuple[list[Tensor], dict[int, State], list[float]]:
    """The totals of several flights of the same values, the states after them, and the bytes that a
    rank sent in each."""
    ranks = tuple(xs)
    states = {rank: codec.init(SPEC, ctx) for rank, ctx in contexts(group=ranks).items()}
    totals, nbytes = [], []
    for step in range(steps):
        at, sent = contexts(step, group=ranks), dict.fromkeys(ranks, 0.0)
        carried = {
            rank: native().carry(
                codec, xs[rank].clone(), SPEC, State(children={"codec": states[rank]}), at[rank]
            )
            for rank in ranks
        }
        totals.append(run(carried, sent)[ranks[0]].total)
        nbytes.append(sent[ranks[0]])
    return totals, states, nbytes


def test_each_turn_sends_one_factor() -> None:
    xs = {
        rank: torch.randn(630) for rank in (0, 1)
    }  # between two ranks, a ring sends a payload once
    assert flights(alternating(3), xs, 4)[2] == [4 * (30 + 3 * 30), 4 * (30 + 3 * 20)] * 2
    assert flights(lowrank(3), xs, 1)[2] == [4 * (30 + 3 * 50)]


def test_a_sum_of_rank_r_is_exact_from_the_second_turn_on() -> None:
    draws = torch.Generator().manual_seed(0)
    left, right = torch.randn(30, 2, generator=draws), torch.randn(2, 20, generator=draws)
    xs = {
        rank: torch.cat(
            [(left @ torch.diag(torch.tensor([1.0, rank])) @ right).view(-1), torch.randn(30)]
        )
        for rank in (0, 1, 2)
    }
    totals, _, _ = flights(alternating(2), xs, 3)
    whole = torch.stack(list(xs.values())).sum(0)
    assert not torch.allclose(totals[0], whole, atol=1e-1)
    assert torch.allclose(totals[1], whole, atol=1e-4)
    assert torch.allclose(totals[2], whole, atol=1e-4)


def test_warm_starts_reach_the_best_approximation_in_twice_the_turns() -> None:
    xs = {rank: torch.randn(630, generator=torch.Generator().manual_seed(rank)) for rank in (0, 1)}
    m = (xs[0] + xs[1])[:600].view(30, 20)
    best = torch.linalg.svdvals(m)[4:].norm()
    errors = [
        float((total[:600].view(30, 20) - m).norm() / best)
        for total in flights(alternating(4), xs, 120)[0]
    ]
    whole = [
        float((total[:600].view(30, 20) - m).norm() / best)
        for total in flights(lowrank(4), xs, 60)[0]
    ]
    assert errors[0] > 1.05
    assert 1 - 1e-5 < errors[-1] < 1.01
    assert abs(errors[-1] - whole[-1]) < 1e-3


def test_factors_are_the_same_on_all_ranks() -> None:
    _, states, _ = flights(alternating(3), {rank: torch.randn(630) for rank in (0, 1, 2)}, 3)
    for name, shape in (("q/w", (20, 3)), ("p/w", (30, 3)), ("turn/w", ())):
        values = [state[name].value for state in states.values()]
        assert values[0].shape == shape
        assert all(torch.equal(value, values[0]) for value in values)
    assert int(states[0]["turn/w"].value) == 3


def test_gradients_near_the_smallest_number_do_not_vanish() -> None:
    xs = {rank: torch.randn(630) * 1e-36 for rank in (0, 1)}
    totals, _, _ = flights(alternating(4), xs, 40)
    assert 0.3 < (totals[-1][:600] / 1e-36).norm() / ((xs[0] + xs[1])[:600] / 1e-36).norm() <= 1.01


def test_with_feedback_what_was_said_catches_up() -> None:
    xs = {rank: torch.randn(630, generator=torch.Generator().manual_seed(rank)) for rank in (0, 1)}
    totals, _, _ = flights(feedback(alternating(2)), xs, 200)
    mean = torch.stack(totals).mean(0)
    assert 0 < (mean - xs[0] - xs[1]).norm() / (xs[0] + xs[1]).norm() < 0.1


def test_bytes_are_stated_where_every_turn_has_as_many() -> None:
    square = Spec((Part("w", (30, 30), 0, "matrix"),), 0, 900, torch.float32)
    assert alternating(2).nbytes(square) == alternating(2).max_nbytes(square) == 4 * 2 * 30
    assert alternating(2).nbytes(SPEC) is None
    assert alternating(2).max_nbytes(SPEC) == 4 * (2 * 30 + 30)
    assert alternating(2).nbytes(specs()["no parts, no values"]) == 0


def test_a_rank_is_at_least_one() -> None:
    with pytest.raises(
        StrategyError, match=r"alternating\(rank=0\): a factor has at least 1 column"
    ):
        alternating(0)
