"""Thinwire as a contestant: the loop of most tutorials with a syncer attached, and its figures."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist

from thinwire import Strategy, recipes
from thinwire.bench.job import Job, RankEnv, batches
from thinwire.bench.loop import Loop
from thinwire.bench.ours import build
from thinwire.errors import StrategyError

MODEL = {"vocab": 16, "context": 8, "layers": 1, "heads": 1, "width": 8}
STEPS = 4


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The variables of a world of one; no process group is left behind."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    for name, value in (("RANK", 0), ("WORLD_SIZE", 1), ("MASTER_PORT", port)):
        monkeypatch.setenv(name, str(value))
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    yield
    if dist.is_initialized():
        dist.destroy_process_group()


def job(folder: Path, strategy: str, **settings: Any) -> Job:
    text = folder / "text.npy"
    np.save(text, np.arange(400, dtype=np.uint8) % 16)
    return Job("thinwire", {"strategy": strategy} | settings, MODEL, str(text), str(text), batch=3)


def losses(trainer: Any, given: Job) -> list[float]:
    at = batches(given, RankEnv())
    return [
        trainer.step(rows[:, :-1], rows[:, 1:], given.rate(step))
        for step, rows in ((step, at(step)) for step in range(STEPS))
    ]


def test_dense_is_the_plain_loop_bit_for_bit(tmp_path: Path) -> None:
    given = job(tmp_path, Strategy().to_toml())
    plain = Loop()
    plain.net = given.new_model()
    plain.optimizer, plain.clip = given.new_optimizer(plain.net), given.clip
    ours = build(given, RankEnv())
    assert losses(ours, given) == losses(plain, given)
    split = ours.split()
    assert set(split) == {"encode_s", "exposed_s", "metered_bytes"}
    assert split["metered_bytes"] == 0.0, "a world of one sends nothing"
    ours.close()
    assert not dist.is_initialized()


def test_local_steps_validate_the_common_weights(tmp_path: Path) -> None:
    given = job(tmp_path, recipes.diloco(period=8).to_toml())
    ours = build(given, RankEnv())
    start = [param.detach().clone() for param in ours.net.parameters()]
    losses(ours, given)
    with ours.common() as model:
        assert all(
            torch.equal(param, before)
            for param, before in zip(model.parameters(), start, strict=True)
        ), "no round has closed: they are the anchor's"
    assert not torch.equal(next(ours.net.parameters()), start[0]), "and the rank's own come back"
    with pytest.warns(UserWarning, match="closed after 4 steps without a mean"):
        ours.close()


def test_options_of_attach_are_passed_on(tmp_path: Path) -> None:
    given = job(tmp_path, Strategy().to_toml(), attach={"bucket_bytes": 1000})
    ours = build(given, RankEnv())
    assert len(ours.sync.buckets) > 1
    ours.close()


def test_a_strategy_that_cannot_be_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StrategyError, match="qsdg"):
        build(job(tmp_path, "[what]\nuse = 'qsdg'\n"), RankEnv())
