"""What a trace holds: every flight of every rank, where it stood, and nothing outside the block."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

import thinwire
from tests.engine.models import mlp, train
from tests.ranks import run_ranks
from thinwire import Strategy
from thinwire.engine.syncer import Syncer
from thinwire.errors import AttachError
from thinwire.how import two_shot
from thinwire.on import deltas, gradients, sgd
from thinwire.what import feedback, uniform
from thinwire.when import every

WORLD = 2


def _traced(rank: int, path: str, strategy: Strategy, steps: int) -> tuple[int, int, int]:
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with thinwire.attach(
        model, optimizer, strategy, bucket_bytes=256, slice_bytes=512, lanes=2
    ) as sync:
        train(model, optimizer, rank, range(4))
        before = sync.report()
        with sync.trace(path):
            train(model, optimizer, rank, range(4, 4 + steps))
        after = sync.report()
        train(model, optimizer, rank, range(4))
    flights = sum(row.flights for row in after.rows) - sum(row.flights for row in before.rows)
    return flights, len(after.rows), int(after.sent_bytes - before.sent_bytes)


@pytest.mark.parametrize("on", ["gradients", "deltas"])
def test_every_flight_of_every_rank_is_there(tmp_path: Path, on: str) -> None:
    path = tmp_path / "trace.json"
    strategy = {
        "gradients": Strategy(every(1), feedback(uniform(4, block=64)), two_shot(), gradients()),
        "deltas": Strategy(every(2), uniform(4, block=64), two_shot(), deltas(outer=sgd(1.0))),
    }[on]
    told = run_ranks(WORLD, _traced, str(path), strategy, 4)
    events = json.loads(path.read_text())["traceEvents"]
    assert list(tmp_path.iterdir()) == [path]
    for rank, (flights, buckets, sent_bytes) in enumerate(told):
        own = [event for event in events if event["pid"] == rank and event["ph"] == "X"]
        wire = [event for event in own if event["name"].startswith("wire")]
        flown = {
            (event["args"]["step"], event["args"]["bucket"], event["args"]["slice"])
            for event in wire
        }
        assert len(flown) == flights > buckets > 1
        assert sum(event["args"]["sent_bytes"] for event in wire) == sent_bytes
        names = [event["name"] for event in own]
        assert [names.count(name) for name in ("forward", "backward", "optimizer")] == [4, 4, 4]
        tracks = {
            event["tid"]: event["args"]["name"]
            for event in events
            if event["pid"] == rank and event["name"] == "thread_name"
        }
        assert sorted(tracks.values()) == ["compute", "lane 0", "lane 1"]
        for (
            tid
        ) in tracks:  # one thing after another on a track, but for the waits within a backward pass
            spans = sorted(
                _span(event)
                for event in own
                if event["tid"] == tid and not event["name"].startswith("wait")
            )
            assert all(end <= begin + 1e-3 for (_, end), (begin, _) in pairwise(spans))
        for event in wire:  # what is encoded comes before what is sent
            encoded = [
                _span(other)
                for other in own
                if other["name"].startswith("encode") and other["args"] == _place(event)
            ]
            assert any(end <= _span(event)[0] + 1e-3 for _, end in encoded)


def _span(event: dict[str, Any]) -> tuple[float, float]:
    return event["ts"], event["ts"] + event["dur"]


def _place(event: dict[str, Any]) -> dict[str, Any]:
    return {name: event["args"][name] for name in ("step", "bucket", "slice")}


def _failing(sync: Syncer, path: Path) -> None:
    with sync.trace(path):
        train(sync.model, sync.optimizer, 0, range(2))
        raise ZeroDivisionError


def test_where_a_block_fails_each_rank_leaves_what_it_has(tmp_path: Path) -> None:
    model = mlp()
    with thinwire.attach(model, torch.optim.SGD(model.parameters(), 0.1)) as sync:
        with pytest.raises(ZeroDivisionError):
            _failing(sync, tmp_path / "trace.json")
        told = json.loads((tmp_path / "trace.rank0.json").read_text())["traceEvents"]
        assert [event["name"] for event in told].count("optimizer") == 2
        with (
            sync.trace(tmp_path / "trace.json"),
            pytest.raises(AttachError, match="another trace is being recorded"),
        ):
            _failing(sync, tmp_path / "other.json")
        with pytest.raises(AttachError, match="there is no folder"):
            _failing(sync, tmp_path / "nowhere" / "trace.json")
