"""All ranks exchange bytes, though a syncer joins some of them."""

from __future__ import annotations

from datetime import timedelta

import torch

from tests.ranks import run_ranks
from tests.shards import mesh_of, sharded
from thinwire.engine import attach
from thinwire.errors import DisagreementError
from thinwire.train.everyone import AllRanks
from thinwire.train.sharding import everyone

CPU, WAIT = torch.device("cpu"), timedelta(seconds=20)


def _gathers(rank: int) -> tuple[list[bytes], list[bytes], str]:
    model = sharded(mesh_of(1, 2)["shard"])
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with everyone(2, WAIT, CPU) as driver, attach(model, optimizer) as sync:
        ranks = AllRanks(sync, driver, CPU)
        made = ranks.all_gather(bytes([rank]), "a test"), sync.all_gather(bytes([rank]), "a test")
        assert (ranks.step, ranks.meter) == (sync.step, sync.meter)
    try:
        with everyone(rank + 1, WAIT, CPU):
            return *made, ""
    except DisagreementError as error:
        return *made, str(error)


def test_all_ranks_are_more_than_those_of_a_shard() -> None:
    for rank, (all_, own, said) in enumerate(run_ranks(2, _gathers)):
        assert all_ == [b"\0", b"\1"]
        assert own == [bytes([rank])]
        assert "shards of a replica" in said
