import pytest
import torch

from tests.how.flights import watched
from thinwire.core import Codec, Exchange, Flight, Outcome
from thinwire.drive.local import run
from thinwire.how import gather
from thinwire.testing import check_route, contexts, specs
from thinwire.what import feedback, identity, lowrank, threshold, topk, uniform

MANY = specs()["many parts"]


def test_laws() -> None:
    check_route(gather(), identity())


@pytest.mark.parametrize("codec", [feedback(topk(0.1)), threshold(1.0)], ids=repr)
def test_laws_with_a_lossy_codec(codec: Codec) -> None:
    check_route(gather(), codec, worlds=(1, 2, 4, 7))


def test_one_loss_and_not_two() -> None:
    xs = {rank: torch.randn(MANY.numel) for rank in range(3)}
    at = contexts(group=(0, 1, 2))
    codec = uniform(4)
    outcomes = run(
        {
            r: gather().carry(codec, xs[r].clone(), MANY, gather().init(codec, MANY, at[r]), at[r])
            for r in xs
        }
    )
    own = [outcome.sent() for outcome in outcomes.values() if outcome.sent]
    assert torch.equal(outcomes[0].total, own[0] + own[1] + own[2])


@pytest.mark.parametrize("codec", [feedback(topk(0.1)), uniform(4), identity()], ids=repr)
def test_the_sum_lies_in_the_bucket_where_no_payload_does(codec: Codec) -> None:
    xs = {rank: torch.randn(MANY.numel) for rank in range(3)}
    at, route = contexts(group=(0, 1, 2)), gather()
    given = {rank: x.clone() for rank, x in xs.items()}
    outcomes = run(
        {r: route.carry(codec, given[r], MANY, route.init(codec, MANY, at[r]), at[r]) for r in xs}
    )
    for rank, outcome in outcomes.items():
        assert torch.equal(outcome.total, outcomes[0].total)
        # Values that are sent as they are lie in the bucket, so a sum there would change them.
        if codec == identity():
            assert torch.equal(outcome.total, xs[0] + xs[1] + xs[2])
        else:
            assert outcome.total.data_ptr() == given[rank].data_ptr()


def test_rounds_are_phased_in_pairs() -> None:
    """In round k everyone sends to the k-th after it, and hears from the k-th before it."""
    at = contexts(group=(0, 1, 2, 3))
    hops = {
        rank: next(
            gather().carry(
                identity(),
                torch.zeros(MANY.numel),
                MANY,
                gather().init(identity(), MANY, at[rank]),
                at[rank],
            )
        )
        for rank in at
    }
    for k in range(3):
        for rank, hop in hops.items():
            assert isinstance(hop, Exchange)
            assert hop.send[k][0] == (rank + k + 1) % 4
            assert hop.recv[k][0] == (rank - k - 1) % 4


@pytest.mark.parametrize(
    ("codec", "hops"), [(topk(0.1), 1), (threshold(1.0), 2), (lowrank(2), 2)], ids=repr
)
def test_lengths_go_first_only_where_the_data_sizes_payloads(codec: Codec, hops: int) -> None:
    at = contexts(group=(0, 1))
    seen: list[object] = []

    def carried(rank: int) -> Flight[Outcome]:
        return gather().carry(
            codec, torch.randn(MANY.numel), MANY, gather().init(codec, MANY, at[rank]), at[rank]
        )

    run({rank: watched(carried(rank), seen.append) for rank in at})
    assert len(seen) == 2 * hops
