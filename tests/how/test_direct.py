import pytest
import torch

from tests.how.flights import bucket, fly, partners, values
from thinwire.core import Codec, Route
from thinwire.errors import StrategyError
from thinwire.how import direct, gossip, hierarchical, native, ring, server, tree
from thinwire.how._sums import added
from thinwire.on import parameters
from thinwire.strategy import Strategy
from thinwire.testing import check_route
from thinwire.what import cast, feedback, identity, lowrank, randomk, topk, uniform
from thinwire.when import every


def test_laws() -> None:
    check_route(direct(), identity())


@pytest.mark.parametrize("codec", [cast(), feedback(lowrank(2)), feedback(randomk(0.1))], ids=repr)
def test_laws_with_a_lossy_codec(codec: Codec) -> None:
    check_route(direct(), codec, worlds=(2, 3, 6))


def test_everyone_talks_to_everyone() -> None:
    assert partners(direct(), identity(), 4) == {rank: {0, 1, 2, 3} - {rank} for rank in range(4)}


def test_sums_are_in_rank_order() -> None:
    xs = values(5, bucket())
    total = xs[0] + xs[1] + xs[2] + xs[3] + xs[4]
    assert all(
        torch.equal(outcome.total, total) for outcome in fly(direct(), identity(), 5).values()
    )


def test_narrow_floats_are_rounded_once() -> None:
    xs = values(9, bucket())
    exact = torch.stack([x.bfloat16().float() for x in xs.values()]).double().sum(0)
    total = fly(direct(), cast(), 9)[0].total
    assert (
        torch.equal(total, exact.bfloat16().float())
        or float((total - exact).abs().max()) <= float(exact.abs().max()) * 2**-8
    )
    ones = [torch.tensor([v], dtype=torch.bfloat16).view(torch.uint8) for v in (256.0, *[1.0] * 8)]
    assert (
        added(ones, ((2, torch.bfloat16),)).view(torch.bfloat16).item() == 264.0
    )  # one after another it would stay at 256


@pytest.mark.parametrize(
    ("codec", "told"), [(uniform(4), r"Use two_shot\(\)"), (topk(0.1), r"Use gather\(\)")], ids=repr
)
def test_what_does_not_add_is_refused(codec: Codec, told: str) -> None:
    with pytest.raises(
        StrategyError,
        match=rf"Cannot carry .* over direct\(\): its payloads cannot be added unopened. {told}",
    ):
        Strategy(what=codec, how=direct())


@pytest.mark.parametrize("route", [direct(), ring(), tree(2), gossip(), server()], ids=repr)
def test_what_a_lot_did_not_fall_on_is_told(route: Route) -> None:
    """The masks of a bucket's spans make the bucket's, the same on every rank."""
    outcomes = fly(route, randomk(0.1), 3)
    masks = [outcome.mask() for outcome in outcomes.values() if outcome.mask is not None]
    assert len(masks) == 3
    assert all(torch.equal(mask, masks[0]) and mask.shape == (bucket().numel,) for mask in masks)
    assert int(masks[0].sum()) == pytest.approx(0.1 * bucket().numel, rel=0.01)
    assert not outcomes[1].total[~masks[0]].any()
    assert route.carries_mask


def test_a_few_parameters_at_a_time_may_travel_it() -> None:
    assert Strategy(every(2), randomk(0.1), direct(), parameters()).what == randomk(0.1)
    with pytest.raises(
        StrategyError, match="does not carry the mask of the entries that were drawn"
    ):
        Strategy(every(2), randomk(0.1), hierarchical(native(), direct(), 2), parameters())
