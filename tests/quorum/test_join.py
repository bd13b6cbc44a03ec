"""`join` refuses what rounds with a quorum cannot be, and gives all ranks one start."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from tests.quorum.runs import PLAIN, Rank, together
from thinwire import Strategy
from thinwire.errors import AttachError, DisagreementError
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
