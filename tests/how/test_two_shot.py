from dataclasses import replace

import pytest
import torch
from torch import Tensor

from thinwire import recipes
from thinwire.core import Codec, Exchange, Flight, Hop, Outcome, Part, Route, Spec, State
from thinwire.drive.local import run
from thinwire.errors import StrategyError
from thinwire.how import gather, two_shot
from thinwire.strategy import Strategy
from thinwire.testing import check_route, contexts, specs
from thinwire.testing.rounds import relayed
from thinwire.what import by_role, cast, feedback, identity, lowrank, topk, uniform

MANY = specs()["many parts"]


def test_laws() -> None:
    check_route(two_shot(), identity())


@pytest.mark.parametrize(
    ("route", "codec"),
    [
        (two_shot(), uniform(4, block=8)),
        (two_shot(), feedback(lowrank(2))),
        (two_shot(back=feedback(topk(0.5))), topk(0.5)),
    ],
    ids=repr,
)
def test_laws_with_a_lossy_codec(route: two_shot, codec: Codec) -> None:
    check_route(route, codec, worlds=(1, 2, 4, 7))


def test_its_bytes_do_not_grow_with_the_world() -> None:
    spec = specs()["no parts"]
    for world in (2, 4, 9):
        at = contexts(group=tuple(range(world)))
        there = [two_shot().sent_nbytes(cast(), spec, ctx) for ctx in at.values()]
        assert sum(size for size in there if size) / world == pytest.approx(
            2 * (world - 1) / world * 200, abs=4
        )
        assert gather().sent_nbytes(cast(), spec, at[0]) == (world - 1) * 200


def test_the_second_loss_is_kept_by_the_owner_of_each_span() -> None:
    route = two_shot(back=feedback(uniform(2)))
    states = {
        rank: route.init(uniform(8), MANY, ctx) for rank, ctx in contexts(group=(0, 1, 2)).items()
    }
    kept = [
        [leaf for path, leaf in state.walk() if path == "back/residual"]
        for state in states.values()
    ]
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
    at = contexts(group=(0, 1, 2))
    route = two_shot(back=uniform(2))
    outcomes = run(
        {
            r: route.carry(identity(), xs[r], MANY, route.init(identity(), MANY, at[r]), at[r])
            for r in xs
        }
    )
    assert all(
        outcome.total.unique().numel() <= 3 * 3 for outcome in outcomes.values()
    )  # three levels of each of three blocks


@pytest.mark.parametrize(
    ("route", "codec", "told"),
    [
        (two_shot(), topk(0.1), "encoding the sum again would drop entries"),
        (two_shot(), feedback(topk(0.1)), "give back= a codec with feedback"),
        (
            two_shot(back=identity()),
            lowrank(2),
            "lowrank(rank=2) sends in several rounds or parts",
        ),
        (two_shot(back=by_role()), uniform(4), "sends in several rounds or parts"),
    ],
    ids=repr,
)
def test_a_pair_that_cannot_be_is_refused(route: two_shot, codec: Codec, told: str) -> None:
    with pytest.raises(StrategyError) as caught:
        Strategy(what=codec, how=route)
    assert told in str(caught.value)


def _flight(
    route: Route,
    codec: Codec,
    spec: Spec,
    states: dict[int, State],
    step: int,
    xs: dict[int, Tensor],
) -> tuple[Tensor, set[int]]:
    """One flight of all ranks: the total, and the bytes that a rank receives."""
    heard = dict.fromkeys(xs, 0)

    def listening(rank: int, flight: Flight[Outcome]) -> Flight[Outcome]:
        def listened(hop: Hop) -> Hop:
            assert isinstance(hop, Exchange)
            heard[rank] += sum(size for _, size in hop.recv)
            return hop

        return relayed(flight, listened)

    at = contexts(step, group=tuple(xs))
    outcomes = run(
        {
            rank: listening(rank, route.carry(codec, x.clone(), spec, states[rank], at[rank]))
            for rank, x in xs.items()
        }
    )
    return outcomes[0].total, set(heard.values())


@pytest.mark.parametrize("world", [2, 4, 8])
def test_a_sparse_down_link_does_not_grow_with_the_world(world: int) -> None:
    """Each owner says the largest of its span's sum, with feedback of its own: 2 (K-1)/K · m in,
    where gather hears (K-1) m."""
    spec = Spec((Part("w", (8, 4096), 0, "matrix"),), 0, 8 * 4096, torch.float32)
    sparse = topk(64, per=4096) >> cast()
    whole, own = (
        chunks * (64 * 2 + 48) + -(-127 * chunks // 8) for chunks in (8, 8 // world)
    )  # values, low bits, high bits of places
    assert (sparse.nbytes(spec), sparse.nbytes(spec.span(0, spec.numel // world))) == (whole, own)
    codec, routes = feedback(sparse), (gather(), two_shot(back=feedback(sparse)))
    xs = {
        rank: torch.randn(spec.numel, generator=torch.Generator().manual_seed(rank))
        for rank in range(world)
    }
    heard = []
    for route in routes:
        states = {
            rank: route.init(codec, spec, ctx) for rank, ctx in contexts(group=tuple(xs)).items()
        }
        heard.append(_flight(route, codec, spec, states, 0, xs)[1])
    assert heard == [{(world - 1) * whole}, {2 * (world - 1) * own}]
    assert 2 * (world - 1) * own <= 2 * whole


def test_a_sparse_down_link_loses_nothing_in_the_end() -> None:
    """What all ranks meant = what they heard + their residuals + the owners' residuals, however
    little travels."""
    spec = Spec((Part("w", (3, 100), 0, "matrix"),), 0, 300, torch.float32)
    codec, route = feedback(topk(5, per=50)), two_shot(back=feedback(topk(3, per=50)))
    states = {rank: route.init(codec, spec, ctx) for rank, ctx in contexts(group=(0, 1, 2)).items()}
    meant, heard = torch.zeros(300), torch.zeros(300)
    for step in range(7):
        xs = {
            rank: torch.randn(300, generator=torch.Generator().manual_seed(10 * step + rank))
            for rank in range(3)
        }
        total, _ = _flight(route, codec, spec, states, step, xs)
        assert int((total != 0).sum()) == 3 * 6
        meant, heard = meant + sum(xs.values()), heard + total
    owed = torch.zeros(300)
    for state in states.values():
        for _, leaf in state.walk():
            assert leaf.spec is not None
            owed[leaf.spec.begin : leaf.spec.end] += leaf.value
    assert torch.allclose(heard + owed, meant, atol=1e-4)


def test_sparseloco_takes_a_sparse_down_link() -> None:
    """At 64 ranks the recipe hears 63 payloads; with a second side it hears not quite two, and it
    stays a legal strategy."""
    spec, world = Spec((Part("w", (64, 4096), 0, "matrix"),), 0, 64 * 4096, torch.float32), 64
    wide = recipes.sparseloco()
    thin = replace(wide, how=two_shot(back=wide.what))
    ctx = contexts(group=tuple(range(world)))[0]
    there, again = (strategy.how.sent_nbytes(strategy.what, spec, ctx) for strategy in (wide, thin))
    assert there == (world - 1) * wide.what.nbytes(spec)  # type: ignore[operator]
    assert again == 2 * (world - 1) * wide.what.nbytes(spec.span(0, 4096))  # type: ignore[operator]
    assert again < 2.2 * wide.what.nbytes(spec)  # type: ignore[operator]  # each span of 4096 pays a scale of its own
