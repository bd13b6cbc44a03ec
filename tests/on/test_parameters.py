from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from tests.fakes import FakeBucket
from tests.test_theory import flat, fly, near, noise, sgd_of
from thinwire.core import Codec, RankContext, Schedule, State
from thinwire.errors import StrategyError
from thinwire.how import gather, gossip, hierarchical, native
from thinwire.on import deltas, nesterov, parameters, sgd
from thinwire.planner.memory import AIR, kept_bytes, on_host
from thinwire.strategy import Strategy
from thinwire.what import by_role, cast, feedback, identity, randomk, topk
from thinwire.when import delayed, every


def test_shares_of_parameters_sum_to_their_weighted_mean() -> None:
    buckets = [FakeBucket(torch.full((3,), value)) for value in (1.0, 4.0)]
    total = sum(
        parameters().read(bucket, State(), share)
        for bucket, share in zip(buckets, (0.25, 0.75), strict=True)
    )
    assert isinstance(total, torch.Tensor)
    assert buckets[0].flat.tolist() == [1.0] * 3
    for bucket in buckets:
        parameters().write(bucket, total, State())
        assert bucket.flat.tolist() == [3.25] * 3
    assert (
        parameters().common(buckets[0], State()) is None
    )  # between landings each rank has its own


@pytest.mark.parametrize(
    ("when", "what", "told"),
    [
        (every(4), topk(0.1), "a sparse mean would erase them"),
        (every(4), randomk(0.1, unbiased=True), "a sparse mean would erase them"),
        (every(4), randomk(0.1) >> cast(), "a sparse mean would erase them"),
        (every(4), feedback(randomk(0.1)), "a sparse mean would erase them"),
        (every(4), by_role(vector=cast()), "its errors would be written into the weights"),
        (delayed(1, every(4)), identity(), "would undo the steps taken meanwhile"),
    ],
    ids=repr,
)
def test_what_would_harm_weights_is_refused(when: Schedule, what: Codec, told: str) -> None:
    with pytest.raises(StrategyError, match=told):
        Strategy(when, what, gather(), parameters())


def test_only_what_a_mean_speaks_of_is_replaced() -> None:
    bucket = FakeBucket(torch.tensor([1.0, 2.0, 3.0]), total_mask=torch.tensor([True, False, True]))
    parameters().write(bucket, torch.tensor([7.0, 0.0, 0.0]), State())
    assert bucket.flat.tolist() == [7.0, 2.0, 0.0], "a mean of zero is a mean"


def test_a_route_that_hides_the_lot_is_refused() -> None:
    assert Strategy(what=randomk(0.1), how=gather(), on=parameters())
    with pytest.raises(
        StrategyError, match="does not carry the mask of the entries that were drawn"
    ):
        Strategy(what=randomk(0.1), how=hierarchical(native(), native(), 2), on=parameters())


WORLD, H, INNER = 4, 3, 0.1
STARTS = [noise(3, 2, key=1), noise(5, key=2)]
OWN = [noise(11, key=10 + rank) for rank in range(WORLD)]


def gradient(rank: int, _: int, weights: list[torch.Tensor]) -> list[torch.Tensor]:
    """Of 1/2 ||w - own||², a minimum of each rank's own."""
    wanted = flat(weights) - OWN[rank]
    return [wanted[:6].view(3, 2), wanted[6:]]


@pytest.mark.parametrize("pull", [1.0, 0.6, 1.4])
def test_over_gossip_it_is_the_step_of_noloco(pull: float) -> None:
    """delta = alpha · delta + beta · mean of the pair's (w - phi) - gamma · (phi - the pair's mean
    phi); phi = phi + delta."""
    alpha, beta = 0.5, 0.7
    gamma = pull * beta
    route, rounds = gossip("pairs"), 5
    strategy = Strategy(every(H), identity(), route, parameters(outer=sgd(beta, alpha), pull=pull))
    seen = fly(WORLD, strategy, STARTS, gradient, rounds * H, sgd_of(INNER), seed=3)

    phi = [flat(STARTS).double() for _ in range(WORLD)]
    delta = [torch.zeros(11, dtype=torch.float64) for _ in range(WORLD)]
    partners = set()
    for round_ in range(rounds):
        moved = [
            (1 - INNER) ** H * (anchor - own) + own - anchor
            for anchor, own in zip(phi, OWN, strict=True)
        ]
        new = list(phi)
        for rank in range(WORLD):
            (peer,), _ = route.peers(
                RankContext(rank, tuple(range(WORLD)), (round_ + 1) * H - 1, 3)
            )
            partners.add((rank, peer))
            pulled = gamma * (phi[rank] - (phi[rank] + phi[peer]) / 2)
            delta[rank] = alpha * delta[rank] + beta * (moved[rank] + moved[peer]) / 2 - pulled
            new[rank] = phi[rank] + delta[rank]
        phi = new
    assert len(partners) > WORLD, "pairs change"
    assert all(near(rank.weights[-1], anchor) for rank, anchor in zip(seen, phi, strict=True))
    assert near(seen[0].common, torch.stack(phi).mean(0))


@pytest.mark.parametrize("outer", [sgd(0.5, 0.9), nesterov(0.7, 0.8)], ids=repr)
def test_where_all_hear_all_it_is_diloco(outer: sgd | nesterov) -> None:
    ours, theirs = (
        fly(
            WORLD,
            Strategy(every(H), identity(), native(), on),
            STARTS,
            gradient,
            4 * H,
            sgd_of(INNER),
        )
        for on in (parameters(outer=outer), deltas(outer=outer))
    )
    assert all(near(a.weights[-1], b.weights[-1]) for a, b in zip(ours, theirs, strict=True))


def test_anchors_that_differ_draw_together_and_towards_the_common_minimum() -> None:
    apart = []
    for pull in (0.02, 1.0):
        on = parameters(outer=sgd(0.7, 0.5), pull=pull)
        seen = fly(
            WORLD,
            Strategy(every(H), identity(), gossip("pairs"), on),
            STARTS,
            gradient,
            40 * H,
            sgd_of(INNER),
        )
        ends = torch.stack([rank.weights[-1] for rank in seen])
        assert (ends.mean(0) - torch.stack(OWN).mean(0)).norm() < 0.1 * (
            flat(STARTS) - torch.stack(OWN).mean(0)
        ).norm()
        apart.append(float((ends - ends.mean(0)).norm()))
    assert apart[1] < 0.8 * apart[0]


def test_the_anchor_is_a_ranks_own_state() -> None:
    bucket = FakeBucket(torch.zeros(6))
    state = parameters(outer=sgd(0.7, 0.5)).init(bucket)
    assert {path: (leaf.kind, leaf.spec is not None) for path, leaf in state.walk()} == {
        "anchor": ("private", True),
        "outer/velocity": ("private", True),
    }


@pytest.mark.parametrize("on", [parameters, deltas])
def test_bf16_halves_what_is_kept_and_the_host_may_keep_it(
    on: type[parameters] | type[deltas],
) -> None:
    n = 16 * 4
    model = nn.Linear(16, 4, bias=False, device="meta")
    sizes = {
        "plain": kept_bytes(Strategy(every(2), on=on(outer=sgd(0.7, 0.5))), model, WORLD),
        "bf16": kept_bytes(
            Strategy(every(2), on=on(outer=sgd(0.7, 0.5), store="bf16")), model, WORLD
        ),
        "host": kept_bytes(
            Strategy(every(2), on=on(outer=sgd(0.7, 0.5), device="cpu")), model, WORLD
        ),
    }
    assert sizes["plain"] == sizes["host"] == {"anchor": 4 * n, "velocity": 4 * n, AIR: 4 * n}
    assert sizes["bf16"] == {"anchor": 2 * n, "velocity": 2 * n, AIR: 4 * n}
    told = [
        on_host(Strategy(every(2), on=on(outer=sgd(), device=place))) for place in ("cpu", None)
    ]
    assert told == [True, False]


@pytest.mark.parametrize("pull", [1.0, 0.6])
def test_a_bf16_anchor_stays_so_and_is_where_the_rank_goes_on(pull: float) -> None:
    bucket = FakeBucket(noise(100, key=1).float())
    on = parameters(outer=sgd(0.7, 0.5), pull=pull, store="bf16", device="cpu")
    state, plain = on.init(bucket), replace(on, store=None, device=None)
    assert {path: (leaf.kind, leaf.value.dtype) for path, leaf in state.walk()} == {
        "anchor": ("private", torch.bfloat16),
        "outer/velocity": ("private", torch.bfloat16),
    }
    other = FakeBucket(bucket.flat.clone())
    exact = plain.init(other)
    for _ in range(3):
        for target, each, kept in ((on, bucket, state), (plain, other, exact)):
            each.flat = each.flat - 0.1
            target.write(each, target.read(each, kept, weight=1.0), kept)
        assert {leaf.value.dtype for _, leaf in state.walk()} == {torch.bfloat16}
        assert torch.equal(bucket.flat, state["anchor"].flat)
    assert 0 < (bucket.flat - other.flat).abs().max() < 0.05


def test_a_bf16_anchor_moves_by_less_than_its_step_in_the_mean() -> None:
    """Moves of a tenth of a bfloat16 step: to the nearest, the anchor would never leave 1."""
    bucket = FakeBucket(torch.ones(20_000))
    on, move = parameters(outer=sgd(1.0), store="bf16"), 2**-7 / 10
    state = on.init(bucket)
    for step in range(20):
        on.write(
            bucket, bucket.flat + (move + 1e-6 * step), state
        )  # another d each time, and so other draws
    assert float(bucket.flat.mean()) - 1 == pytest.approx(20 * move, rel=0.05)
    assert bucket.flat.unique().numel() > 2


def test_where_all_hear_all_bf16_anchors_are_equal() -> None:
    on = parameters(outer=sgd(0.7, 0.5), store="bf16")
    buckets = [FakeBucket(noise(100, key=1).float()) for _ in range(2)]
    states = [on.init(bucket) for bucket in buckets]
    for _ in range(3):
        for rank, bucket in enumerate(buckets):
            bucket.flat = bucket.flat - 0.01 * (rank + 1)
        total = sum(
            on.read(bucket, state, weight=0.5)
            for bucket, state in zip(buckets, states, strict=True)
        )
        assert isinstance(total, torch.Tensor)
        for bucket, state in zip(buckets, states, strict=True):
            on.write(bucket, total, state)
        assert torch.equal(buckets[0].flat, buckets[1].flat)
        assert not torch.equal(buckets[0].flat, total), "it is rounded"


def test_how_it_is_kept_leaves_no_trace_unsaid_and_survives_toml() -> None:
    assert (
        repr(parameters(outer=sgd(0.7, 0.5), pull=0.9))
        == "parameters(outer=sgd(lr=0.7, momentum=0.5), pull=0.9)"
    )
    assert (
        repr(parameters(sgd(1.0), store="bf16"))
        == "parameters(outer=sgd(lr=1.0, momentum=0.0), store='bf16')"
    )
    full = Strategy(every(4), on=parameters(sgd(0.7), pull=0.9, store="bf16", device="cpu"))
    assert Strategy.from_toml(full.to_toml()) == full


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"outer": sgd(), "store": "fp8"}, r"parameters\(store='fp8'\): choose 'bf16'"),
        ({"outer": sgd(), "device": "disk"}, r"parameters\(device='disk'\): choose 'cpu'"),
        ({"store": "bf16"}, r"parameters\(store='bf16'\): there is no anchor to keep; give outer="),
        ({"device": "cpu"}, r"parameters\(device='cpu'\): there is no anchor to keep; give outer="),
    ],
    ids=repr,
)
def test_how_it_is_kept_is_refused(settings: dict[str, Any], told: str) -> None:
    with pytest.raises(StrategyError, match=told):
        parameters(**settings)


def test_wrong_arguments_are_told() -> None:
    with pytest.raises(StrategyError, match="there are no anchors to draw together"):
        parameters(pull=0.5)
    for pull in (0.0, -1.0, float("inf")):
        with pytest.raises(StrategyError, match="is positive, and finite"):
            parameters(outer=sgd(), pull=pull)
    with pytest.raises(StrategyError, match="an outer step needs the mean of every parameter"):
        Strategy(every(2), randomk(0.1), native(), parameters(outer=sgd(0.7)))
    assert repr(parameters()) == "parameters()"
