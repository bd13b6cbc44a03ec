"""`join` refuses what rounds with a quorum cannot be, and gives all ranks one start."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

import thinwire
from tests.engine.models import mlp, sgd_of, train
from tests.quorum.runs import PLAIN, Rank, together
from thinwire import Strategy
from thinwire.core import RankContext, collective
from thinwire.errors import AttachError, DisagreementError, FlightError
from thinwire.how import gather, native
from thinwire.on import deltas, parameters
from thinwire.what import by_role, ef21, feedback, lowrank, topk, uniform
from thinwire.when import delayed, every


def test_all_start_as_the_first_does() -> None:
    def work(rank: int, store: Any) -> Tensor:
        mine = Rank(store, rank, seed=rank)
        mine.sync.close()
        return mine.flat

    flats = together(3, work)
    assert torch.equal(flats[0], flats[1])
    assert torch.equal(flats[1], flats[2])


@pytest.mark.parametrize(
    ("given", "options", "told"),
    [
        (
            Strategy(delayed(1, every(3)), how=gather(), on=deltas()),
            {},
            r"a round is so many local steps; take every\(n\)",
        ),
        (
            Strategy(every(3, phase=0), how=gather(), on=deltas()),
            {},
            r"take every\(n\), without a phase",
        ),
        (Strategy(every(3), how=native(), on=deltas()), {}, r"take gather\(\)"),
        (Strategy(every(3), how=gather(), on=parameters()), {}, r"take deltas\(outer=…\)"),
        (Strategy(every(3), how=gather(), on=deltas(alpha=0.5)), {}, "without alpha and eager"),
        (Strategy(every(3), feedback(lowrank(1)), gather(), deltas()), {}, "must send one packet"),
        (Strategy(every(3), ef21(topk(1)), gather(), deltas()), {}, "must send one packet"),
        (
            Strategy(every(3), by_role(matrix=uniform(4)), gather(), deltas()),
            {},
            "must send one packet",
        ),
        (PLAIN, {"quorum": 4}, "a quorum is 1 to world ranks"),
        (PLAIN, {"quorum": 0}, "a quorum is 1 to world ranks"),
        (PLAIN, {"rank": -1}, "a number of this process' own"),
        (PLAIN, {"grace_s": -1.0}, "seconds, at least 0"),
        (PLAIN, {"weight": float("nan")}, "finite, and at least 0"),
        (PLAIN, {"bucket_bytes": 0}, "at least 1"),
        (PLAIN, {"slice_bytes": "auto"}, "no link is measured"),
    ],
)
def test_what_cannot_be_is_refused(given: Strategy, options: dict[str, Any], told: str) -> None:
    settings = {"rank": 0} | options
    with pytest.raises(AttachError, match=told):
        Rank(dist.HashStore(), settings.pop("rank"), given, **settings)


def test_another_run_is_not_joined() -> None:
    store = dist.HashStore()
    Rank(store, 0)
    with pytest.raises(
        DisagreementError, match=r"cannot join: quorum differs \(the run: 2; here: 3\)"
    ):
        Rank(store, 1, quorum=3)
    mine = Rank(store, 1)
    with pytest.raises(AttachError, match="a weight is finite"):
        mine.sync.weigh(-1.0)


def test_a_rank_beyond_the_world_needs_room_for_it() -> None:
    store = dist.HashStore()
    with pytest.raises(AttachError, match=r"this run's ranks are below 3\. Where others than the"):
        Rank(store, 3)
    with pytest.raises(AttachError, match=r"max_world=2: from world to 1000000"):
        Rank(store, 0, max_world=2)
    Rank(store, 3, max_world=4, quorum=1, grace_s=0.0).sync.close()


def test_the_first_rank_bounds_the_weights_of_all() -> None:
    store = dist.HashStore()
    Rank(store, 0, weight=0.5, max_weight=2.0)
    mine = Rank(store, 1)
    with pytest.raises(AttachError, match=r"have agreed on at most 2\. Give all of them"):
        mine.sync.weigh(2.5)
    with pytest.raises(
        DisagreementError, match=r"max_weight differs \(the run: 2\.0; here: 9\.0\)"
    ):
        Rank(store, 2, max_weight=9.0)
    with pytest.raises(AttachError, match=r"max_weight=0: finite, and above 0"):
        Rank(store, 2, max_weight=0)


@pytest.mark.parametrize("facts", ["[]", "{}", '{"max_weight": -1}', '{"max_weight": "1"}', "{"])
def test_a_store_that_something_else_writes_to_is_an_error(facts: str) -> None:
    store = dist.HashStore()
    dist.PrefixStore("thinwire-rounds", store).set("facts", facts)  # type: ignore[attr-defined]
    with pytest.raises(FlightError, match="cannot join: the store holds no facts of a run"):
        Rank(store, 0)


def test_ranks_of_a_quorum_fly_nothing() -> None:
    mine = Rank(dist.HashStore(), 0)
    ctx = RankContext(0, (0, 1, 2), 0, 0)
    flight = collective.all_gather(torch.zeros(1, dtype=torch.uint8), ctx)
    with pytest.raises(FlightError, match="probe: ranks of a quorum fly nothing"):
        mine.sync.driver.start(flight, 0, "probe")


def test_a_second_join_is_refused() -> None:
    model = mlp()
    optimizer = sgd_of(model)
    run: dict[str, Any] = {
        "store": torch.distributed.HashStore(),
        "rank": 0,
        "world": 1,
        "quorum": 1,
    }
    with (
        thinwire.join(model, optimizer, PLAIN, **run),
        pytest.raises(AttachError, match="synchronised already"),
    ):
        thinwire.join(model, optimizer, PLAIN, **run)


def test_weights_loaded_after_join_are_refused() -> None:
    model = mlp()
    optimizer = sgd_of(model)
    run: dict[str, Any] = {
        "store": torch.distributed.HashStore(),
        "rank": 0,
        "world": 1,
        "quorum": 1,
    }
    with thinwire.join(model, optimizer, PLAIN, **run):
        model.load_state_dict(mlp(seed=4).state_dict())
        with pytest.raises(AttachError, match="was loaded, or changed by hand, at step 0"):
            train(model, optimizer, 0, range(1))
