"""All ranks exchange bytes, though a syncer joins some of them."""

from __future__ import annotations

import os
import signal
from datetime import timedelta

import pytest
import torch

from tests.ranks import run_ranks
from tests.shards import loss_of, mesh_of, sharded
from thinwire.engine import attach
from thinwire.errors import DisagreementError, RankLostError
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


def _loses(rank: int) -> str:
    """FSDP's own messages fail, as rank 3 of four is gone."""
    model = sharded(mesh_of(2, 2)["shard"])
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with everyone(2, WAIT, CPU) as driver, attach(model, optimizer) as sync:
        ranks = AllRanks(sync, driver, CPU)
        loss_of(model, 0, rank).backward()
        if rank == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        with pytest.raises(RankLostError) as error, ranks.explaining():
            [loss_of(model, step, rank).backward() for step in range(3)]
        with pytest.raises(RuntimeError, match="a fault of ours"), ranks.explaining():
            raise RuntimeError("a fault of ours")
        return f"{error.value.ranks} {error.value}"


def test_a_rank_that_is_lost_is_named_where_fsdp_waits() -> None:
    for text in run_ranks(4, _loses)[:3]:
        assert text.startswith("(3,) rank 3 lost")
