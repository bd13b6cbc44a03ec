import pytest
import torch

from tests.how.flights import bucket, fly, partners, values
from thinwire.core import Codec
from thinwire.errors import StrategyError
from thinwire.how import ring
from thinwire.strategy import Strategy
from thinwire.testing import check_route
from thinwire.what import (
    by_role,
    cast,
    entropy,
    feedback,
    identity,
    lowrank,
    randomk,
    topk,
    uniform,
)


def test_laws() -> None:
    check_route(ring(), identity())


@pytest.mark.parametrize(
    "codec", [cast(), randomk(0.1), uniform(8), feedback(uniform(4)), entropy(uniform(4))], ids=repr
)
def test_laws_with_a_lossy_codec(codec: Codec) -> None:
    check_route(ring(), codec, worlds=(2, 3, 6))


@pytest.mark.parametrize(
    "codec",
    [feedback(lowrank(2)), by_role(matrix=feedback(lowrank(2)), vector=uniform(8))],
    ids=repr,
)
def test_laws_with_several_rounds(codec: Codec) -> None:
    check_route(ring(), codec, worlds=(2, 5))


def test_each_talks_to_the_next_only() -> None:
    for codec in (identity(), uniform(8)):
        assert partners(ring(), codec, 5) == {rank: {(rank + 1) % 5} for rank in range(5)}


def test_a_sum_is_encoded_again_at_every_step() -> None:
    """The error of the total beyond that of the contributions grows with the ring; unopened sums
    have none."""
    errors = []
    for world in (2, 4, 8):
        outcomes = fly(ring(), uniform(4), world)
        said = (
            torch.stack([outcome.sent() for outcome in outcomes.values() if outcome.sent])
            .double()
            .sum(0)
        )
        errors.append(float((outcomes[0].total - said).norm() / said.norm()))
    assert 0.05 < errors[0] < errors[1] < errors[2]
    exact = torch.stack(list(values(8, bucket()).values())).double().sum(0)
    assert float((fly(ring(), identity(), 8)[0].total - exact).abs().max()) < 1e-5


def test_what_drops_entries_is_refused() -> None:
    with pytest.raises(
        StrategyError,
        match=r"Cannot carry topk.* over ring\(\): encoding a sum again .* Use gather\(\)",
    ):
        Strategy(what=topk(0.1), how=ring())
