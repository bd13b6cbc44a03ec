import pytest
import torch

from tests.fakes import FakeBucket
from thinwire.core import Schedule
from thinwire.errors import StrategyError
from thinwire.on import deltas, nesterov, sgd
from thinwire.strategy import Strategy
from thinwire.when import delayed, every, staggered, warmup


def exchange(target: deltas, buckets: list[FakeBucket], shares: list[float], rounds: int, move: torch.Tensor) -> list[torch.Tensor]:
    """Some rounds of local moves (rank r moves by r + 1 times `move`), each followed by a weighted sum of deltas; the anchors."""
    states = [target.init(bucket) for bucket in buckets]
    anchors = []
    for _ in range(rounds):
        for rank, bucket in enumerate(buckets):
            bucket.flat = bucket.flat - (rank + 1) * move
        total = sum(target.read(b, s, share) for b, s, share in zip(buckets, states, shares, strict=True))
        assert isinstance(total, torch.Tensor)
        for bucket, state in zip(buckets, states, strict=True):
            target.write(bucket, total, state)
        common = [target.common(bucket, state) for bucket, state in zip(buckets, states, strict=True)]
        assert all(torch.equal(anchor, common[0]) for anchor in common)
        anchors.append(common[0])
    return anchors


def test_plain_averaging_puts_all_on_the_weighted_mean_of_their_parameters() -> None:
    buckets = [FakeBucket(torch.zeros(4)) for _ in range(2)]
    anchors = exchange(deltas(outer=sgd(1.0)), buckets, [0.25, 0.75], 1, torch.ones(4))
    assert anchors[0].tolist() == [-1.75] * 4
    assert all(bucket.flat.tolist() == [-1.75] * 4 for bucket in buckets)


def test_the_outer_optimiser_sees_the_mean_delta_as_a_gradient() -> None:
    move = torch.tensor([1.0, -2.0, 0.5])
    param = torch.nn.Parameter(torch.zeros(3))
    theirs = torch.optim.SGD([param], lr=0.7, momentum=0.9, nesterov=True)
    for ours in exchange(deltas(outer=nesterov(0.7, 0.9)), [FakeBucket(torch.zeros(3)) for _ in range(2)], [0.5, 0.5], 4, move):
        param.grad = 1.5 * move
        theirs.step()
        assert torch.allclose(ours, param.detach(), atol=1e-5)


def test_alpha_keeps_a_share_of_a_ranks_own_parameters() -> None:
    buckets = [FakeBucket(torch.zeros(2)) for _ in range(2)]
    anchors = exchange(deltas(outer=sgd(1.0), alpha=0.25), buckets, [0.5, 0.5], 1, torch.ones(2))
    assert anchors[0].tolist() == [-1.5] * 2
    assert [bucket.flat[0].item() for bucket in buckets] == [0.25 * -1 + 0.75 * -1.5, 0.25 * -2 + 0.75 * -1.5]


def test_its_state_is_replaced_and_equal_on_all_ranks() -> None:
    bucket = FakeBucket(torch.zeros(2))
    state = deltas().init(bucket)
    before = state["anchor"].value
    deltas().write(bucket, torch.ones(2), state)
    assert before.tolist() == [0.0, 0.0]
    assert {leaf.kind for _, leaf in state.walk()} == {"replicated"}
    assert [path for path, _ in state.walk()] == ["anchor", "outer/velocity"]


@pytest.mark.parametrize("when", [every(4), delayed(3, every(4)), delayed(2, staggered(4, every(8))), warmup(2, every(4))], ids=repr)
def test_a_delta_that_lands_before_the_next_is_taken_is_fine(when: Schedule) -> None:
    assert Strategy(when=when, on=deltas()).when == when


@pytest.mark.parametrize("when", [delayed(4, every(4)), delayed(1, every(1)), delayed(1, warmup(2, every(8)))], ids=repr)
def test_a_delta_that_lands_later_is_refused(when: Schedule) -> None:
    with pytest.raises(StrategyError, match="local progress counts twice"):
        Strategy(when=when, on=deltas())


@pytest.mark.parametrize("alpha", [-0.1, 1.0, float("nan")])
def test_alpha_is_a_share(alpha: float) -> None:
    with pytest.raises(StrategyError, match=r"lies in \[0, 1\)"):
        deltas(alpha=alpha)
