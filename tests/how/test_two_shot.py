import pytest
import torch

from thinwire.core import Codec
from thinwire.drive.local import run
from thinwire.errors import StrategyError
from thinwire.how import gather, two_shot
from thinwire.strategy import Strategy
from thinwire.testing import check_route, seats, specs
from thinwire.what import by_role, cast, feedback, identity, lowrank, topk, uniform

MANY = specs()["many parts"]


def test_laws() -> None:
    check_route(two_shot(), identity())


@pytest.mark.parametrize(
    ("route", "codec"),
    [(two_shot(), uniform(4, block=8)), (two_shot(), feedback(lowrank(2))), (two_shot(back=feedback(topk(0.5))), topk(0.5))],
    ids=repr,
)
def test_laws_with_a_lossy_codec(route: two_shot, codec: Codec) -> None:
    check_route(route, codec, worlds=(1, 2, 4, 7))


def test_its_bytes_do_not_grow_with_the_world() -> None:
    spec = specs()["no parts"]
    for world in (2, 4, 9):
        at = seats(group=tuple(range(world)))
        there = [two_shot().sent_nbytes(cast(), spec, seat) for seat in at.values()]
        assert sum(size for size in there if size) / world == pytest.approx(2 * (world - 1) / world * 200, abs=4)
        assert gather().sent_nbytes(cast(), spec, at[0]) == (world - 1) * 200


def test_the_second_loss_is_kept_by_the_owner_of_each_span() -> None:
    route = two_shot(back=feedback(uniform(2)))
    states = {rank: route.init(uniform(8), MANY, seat) for rank, seat in seats(group=(0, 1, 2)).items()}
    kept = [[leaf for path, leaf in state.walk() if path == "back/residual"] for state in states.values()]
    assert [len(leaves) for leaves in kept] == [1, 1, 1]
    assert {leaves[0].kind for leaves in kept} == {"sharded"}
    spans = [leaves[0].spec for leaves in kept]
    assert [span.begin for span in spans if span] == [0, 256, 512]
    assert sum(span.numel for span in spans if span) == MANY.numel


def test_spans_are_cut_at_the_coarser_grain() -> None:
    grains = [
        (two_shot(), uniform(4, block=6), 6),
        (two_shot(back=uniform(4, block=4)), uniform(4, block=6), 12),
        (two_shot(), by_role(matrix=lowrank(2)), "part"),
    ]
    assert [route._grain(codec) for route, codec, _ in grains] == [grain for *_, grain in grains]


def test_all_ranks_decode_what_the_owner_sent_the_owner_too() -> None:
    xs = {rank: torch.randn(MANY.numel) for rank in range(3)}
    at = seats(group=(0, 1, 2))
    route = two_shot(back=uniform(2))
    outcomes = run({r: route.carry(identity(), xs[r], MANY, route.init(identity(), MANY, at[r]), at[r]) for r in xs})
    assert all(outcome.total.unique().numel() <= 3 * 3 for outcome in outcomes.values())  # three levels of each of three blocks


@pytest.mark.parametrize(
    ("route", "codec", "told"),
    [
        (two_shot(), topk(0.1), "encoding the sum again would drop entries"),
        (two_shot(), feedback(topk(0.1)), "give back= a codec with feedback"),
        (two_shot(back=identity()), lowrank(2), "lowrank(rank=2) speaks in several rounds or parts"),
        (two_shot(back=by_role()), uniform(4), "speaks in several rounds or parts"),
    ],
    ids=repr,
)
def test_a_pair_that_cannot_be_is_refused(route: two_shot, codec: Codec, told: str) -> None:
    with pytest.raises(StrategyError) as caught:
        Strategy(what=codec, how=route)
    assert told in str(caught.value)
