import pytest
import torch

from tests.how.flights import EVEN, bucket, contexts_of, fly, partners
from thinwire.core import Codec
from thinwire.errors import StrategyError
from thinwire.how import server, two_shot
from thinwire.strategy import Strategy
from thinwire.testing import check_route
from thinwire.what import cast, entropy, feedback, identity, lowrank, randomk, topk, uniform


@pytest.mark.parametrize("ranks", [(0,), (0, 2, 3)])
def test_laws(ranks: tuple[int, ...]) -> None:
    check_route(server(ranks), identity())


@pytest.mark.parametrize(
    "codec",
    [cast(), randomk(0.1), feedback(uniform(4)), entropy(uniform(4)), feedback(lowrank(2))],
    ids=repr,
)
def test_laws_with_a_lossy_codec(codec: Codec) -> None:
    check_route(server((1, 0)), codec, worlds=(2, 3))


@pytest.mark.parametrize(
    ("codec", "back"),
    [(topk(0.1), identity()), (feedback(topk(0.2)), feedback(topk(0.5))), (identity(), uniform(8))],
)
def test_laws_with_another_codec_back(codec: Codec, back: Codec) -> None:
    check_route(server((0, 1), back=back), codec, worlds=(2, 5))


def test_workers_talk_to_servers_only() -> None:
    assert partners(server((1, 2)), identity(), 4) == {
        0: {1, 2},
        1: {0, 2, 3},
        2: {0, 1, 3},
        3: {1, 2},
    }


def test_servers_share_the_bucket() -> None:
    spec, at = bucket(), contexts_of(4)
    sent = [server((1, 2)).sent_nbytes(identity(), spec, ctx) for ctx in at.values()]
    half = EVEN * 4 // 2
    assert sent == [2 * half, half + 3 * half, half + 3 * half, 2 * half]


def test_with_every_rank_a_server_it_is_two_shot() -> None:
    one, other = fly(server((0, 1, 2)), uniform(4), 3), fly(two_shot(), uniform(4), 3)
    assert torch.equal(one[1].total, other[1].total)


def test_dense_sums_lose_nothing_more() -> None:
    outcomes = fly(server((0,), back=identity()), topk(0.1), 4)
    assert torch.equal(
        outcomes[2].total, sum(outcome.sent() for outcome in outcomes.values() if outcome.sent)
    )


def test_the_servers_keep_the_second_loss() -> None:
    route, at = server((2, 0), back=feedback(uniform(2))), contexts_of(3)
    states = {rank: route.init(uniform(8), bucket(), ctx) for rank, ctx in at.items()}
    kept = {
        rank: [leaf for path, leaf in state.walk() if path == "back/residual"]
        for rank, state in states.items()
    }
    assert [len(kept[rank]) for rank in at] == [1, 0, 1]
    spans = [kept[rank][0].spec for rank in (2, 0)]  # the first server has the first half
    assert [span.begin for span in spans if span] == [0, 5120]
    assert {leaf.kind for leaves in kept.values() for leaf in leaves} == {"sharded"}


@pytest.mark.parametrize("ranks", [(), (0, 0), (-1,)])
def test_servers_are_named_once_each(ranks: tuple[int, ...]) -> None:
    with pytest.raises(StrategyError, match="name at least one server, each once"):
        server(ranks)


def test_a_server_that_is_missing_is_refused_at_attach() -> None:
    with pytest.raises(
        StrategyError,
        match=r"there are no ranks \[4, 7\] in a world of 4; name servers from 0 to 3",
    ):
        server((0, 4, 7)).groups(4)


@pytest.mark.parametrize(
    ("route", "codec", "told"),
    [
        (server(), topk(0.1), "Use back=identity"),
        (server(back=identity()), lowrank(2), "sends in several rounds or parts. Use back=None"),
    ],
    ids=repr,
)
def test_a_pair_that_cannot_be_is_refused(route: server, codec: Codec, told: str) -> None:
    with pytest.raises(StrategyError) as caught:
        Strategy(what=codec, how=route)
    assert told in str(caught.value)
