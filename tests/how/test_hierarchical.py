from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.how.flights import watched
from tests.some import some
from thinwire.core import AllReduce, Codec, Exchange, Route
from thinwire.drive.local import run
from thinwire.errors import StrategyError
from thinwire.how import gather, gossip, hierarchical, native, two_shot
from thinwire.strategy import Strategy
from thinwire.testing import check_route, contexts, specs
from thinwire.what import cast, feedback, identity, lowrank, topk, uniform

MANY = specs()["many parts"]


@pytest.mark.parametrize("node", some([1, 2, 3], 2))
@pytest.mark.parametrize("outer", [native(), two_shot(), gather()], ids=repr)
def test_laws(node: int, outer: Route) -> None:
    check_route(hierarchical(native(), outer, node), identity())


@pytest.mark.parametrize(
    ("route", "codec"),
    [
        (hierarchical(native(), two_shot(), 3), uniform(4, block=8)),
        (hierarchical((two_shot(), cast()), gather(), 2), feedback(topk(0.1))),
        (hierarchical(native(), native(), 2), feedback(lowrank(2))),
    ],
    ids=repr,
)
def test_laws_with_a_lossy_codec(route: hierarchical, codec: Codec) -> None:
    check_route(route, codec, worlds=(2, 3, 4, 6))


def test_only_the_codec_crosses_the_thin_wire() -> None:
    """Bytes between nodes: what the codec needs for the rank's share of its node's sum, there and
    back."""
    crossing = dict.fromkeys(range(4), 0.0)

    def look(rank: int, hop: Any) -> None:
        if isinstance(hop, Exchange):
            crossing[rank] += sum(
                payload.numel() for peer, payload in hop.send if peer // 2 != rank // 2
            )
        elif isinstance(hop, AllReduce):
            assert len({peer // 2 for peer in hop.group}) == 1, (
                "an all-reduce between nodes would be dense"
            )

    route, codec, at = (
        hierarchical(native(), two_shot(), 2),
        uniform(4),
        contexts(group=(0, 1, 2, 3)),
    )
    flights = {
        r: route.carry(codec, torch.randn(MANY.numel), MANY, route.init(codec, MANY, at[r]), at[r])
        for r in at
    }
    run({r: watched(flight, partial(look, r)) for r, flight in flights.items()})
    assert sum(crossing.values()) == 2 * sum(codec.nbytes(span) for span in MANY.cut(2, 256))


def test_groups_are_peers_and_nodes_that_all_reduce_of_more_than_one_rank() -> None:
    assert hierarchical(native(), native(), 3).groups(6) == ((0, 3), (1, 4), (2, 5))
    assert hierarchical((native(), identity()), native(), 3).groups(6) == (
        (0, 1, 2),
        (3, 4, 5),
        (0, 3),
        (1, 4),
        (2, 5),
    )
    assert hierarchical(native(), native(), 1).groups(3) == ()
    assert hierarchical(native(), native(), 4).groups(4) == ()


def test_a_world_that_is_no_multiple_is_refused_at_attach() -> None:
    with pytest.raises(StrategyError, match="a world of 5 ranks is no multiple of 2"):
        hierarchical(native(), native(), 2).groups(5)


@pytest.mark.parametrize(
    ("inner", "outer", "node", "told"),
    [
        (native(), native(), 0, "a node has at least 1 rank"),
        (hierarchical(native(), native(), 2), native(), 2, "give its codec"),
        (native(), gossip(), 2, "leaves ranks with different sums"),
        (two_shot(), native(), 2, "give its codec"),
        ((native(), uniform(4)), native(), 2, "its payloads cannot be added unopened"),
    ],
    ids=repr,
)
def test_a_level_that_cannot_be_is_refused(inner: Any, outer: Route, node: int, told: str) -> None:
    with pytest.raises(StrategyError) as caught:
        hierarchical(inner, outer, node)
    assert told in str(caught.value)


def test_the_codec_must_fit_the_outer_level() -> None:
    with pytest.raises(StrategyError, match=r"Cannot carry topk\(k=0.1, per=0\) over two_shot"):
        Strategy(what=topk(0.1), how=hierarchical(native(), two_shot(), 2))


def test_levels_may_be_nested() -> None:
    three = hierarchical(native(), hierarchical((two_shot(), identity()), native(), node=3), node=2)
    assert set(three.groups(12)) == {
        *((place, place + 2, place + 4, place + 6, place + 8, place + 10) for place in (0, 1)),
        *((place, place + 2, place + 4) for place in (0, 1, 6, 7)),
        *((place, place + 6) for place in range(6)),
    }
    check_route(three, identity(), worlds=[6, 12])
    check_route(
        hierarchical((hierarchical(native(), native(), 2), identity()), two_shot(), 4),
        uniform(8),
        worlds=[8],
    )


def test_nodes_are_as_the_launcher_says(monkeypatch: pytest.MonkeyPatch) -> None:
    route = hierarchical(native(), two_shot())
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    assert route.groups(6) == hierarchical(native(), two_shot(), 3).groups(6)
    assert route.bind(6) == hierarchical(native(), two_shot(), 3)
    monkeypatch.delenv("LOCAL_WORLD_SIZE")
    with pytest.raises(
        StrategyError, match=r"LOCAL_WORLD_SIZE is ''.*Start with torchrun, or give node="
    ):
        route.groups(6)


def test_the_levels_of_a_mesh() -> None:
    mesh = SimpleNamespace(mesh=torch.arange(24).view(2, 3, 4))
    made = hierarchical.on_mesh(mesh, native(), (two_shot(), cast()), gather())
    assert made == hierarchical(native(), hierarchical((two_shot(), cast()), gather(), 3), 4)


@pytest.mark.parametrize(
    ("ranks", "levels", "told"),
    [
        (torch.arange(4), (native(),), "two dimensions or more"),
        (torch.arange(6).view(3, 2).T, (native(), native()), "numbered node by node"),
        (torch.arange(6).view(3, 2), (native(),), "1 levels for a mesh of 2 dimensions"),
        (torch.arange(6).view(3, 2), (native(), (native(), identity())), "give a route alone"),
    ],
    ids=str,
)
def test_a_mesh_that_has_no_levels_is_refused(
    ranks: Tensor, levels: tuple[Any, ...], told: str
) -> None:
    with pytest.raises(StrategyError, match=told):
        hierarchical.on_mesh(SimpleNamespace(mesh=ranks), *levels)
