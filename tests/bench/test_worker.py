"""A worker times and counts the steps after the warm-up, and leaves validations out of both."""

from __future__ import annotations

import contextlib
import math
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from thinwire.bench import worker
from thinwire.bench.job import Job, RankEnv
from thinwire.bench.worker import BESIDE, Meeting, train, validated

MODEL = {"vocab": 16, "context": 8, "layers": 1, "heads": 1, "width": 8}
STEP_BYTES, VALIDATION_BYTES = 100, 7000


class Alone:
    """A meeting of one rank."""

    def wait(self) -> None:
        pass

    def all_gather(self, value: float) -> list[float]:
        return [value]


class Half(nn.Module):
    """Has a loss of half a nat for every token."""

    def forward(self, tokens: Tensor, targets: Tensor) -> tuple[None, Tensor]:
        return None, torch.tensor(0.5)


class Trainer:
    """Sends 100 bytes a step, and more to validate; its loss is its step."""

    def __init__(self, sent: list[int], takes_s: float = 0.0) -> None:
        self.sent, self.takes_s, self.rates = sent, takes_s, []

    def step(self, tokens: Tensor, targets: Tensor, lr: float) -> float:
        assert torch.equal(tokens[:, 1:], targets[:, :-1])
        self.sent[0] += STEP_BYTES * (1 + (len(self.rates) == 3))  # step 3 is a burst
        self.rates.append(lr)
        return float(len(self.rates) - 1)

    @contextlib.contextmanager
    def common(self) -> Iterator[nn.Module]:
        self.sent[0] += VALIDATION_BYTES
        yield Half()

    def split(self) -> dict[str, float]:
        return {"metered_bytes": float(self.sent[0])}

    def close(self) -> None:
        pass


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    counter = [0]
    monkeypatch.setattr(worker, "sent_bytes", lambda: counter[0])
    return counter


def job(folder: Path, **more: Any) -> Job:
    text = folder / "text.npy"
    np.save(text, np.arange(400, dtype=np.uint8) % 16)
    settings: dict[str, Any] = {"batch": 2, "steps": 8, "stop": 6, "windows": 40} | more
    return Job("ddp", {}, MODEL, str(text), str(text), **settings)


ENV = RankEnv(0, 1, "127.0.0.1", 1)


def ran(given: Job, trainer: Trainer) -> dict[str, Any]:
    return train(given, ENV, trainer, Alone())  # type: ignore[arg-type]


def test_bytes_are_those_after_the_warm_up_without_validations(
    tmp_path: Path, sent: list[int]
) -> None:
    figures = ran(job(tmp_path, warm=2, validate_every=3), Trainer(sent))
    assert figures["losses"] == [0, 1, 2, 3, 4, 5]
    assert len(figures["seconds"]) == 6
    assert figures["warm"] == 2
    assert figures["sent_bytes"] == 5 * STEP_BYTES, "four steps, one of them a burst"
    assert figures["burst_bytes"] == 2 * STEP_BYTES
    assert figures["validation"] == [(3, 0.5), (6, 0.5)]
    assert figures["split"]["metered_bytes"] == 5 * STEP_BYTES + 2 * VALIDATION_BYTES


def test_rates_are_the_jobs_and_the_last_step_is_always_validated(
    tmp_path: Path, sent: list[int]
) -> None:
    given, trainer = job(tmp_path, validate_every=4), Trainer(sent)
    assert [step for step, _ in ran(given, trainer)["validation"]] == [4, 6]
    assert trainer.rates == [given.rate(step) for step in range(6)]


def test_slow_steps_end_after_a_few(
    tmp_path: Path, sent: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [0.0]

    def tick() -> float:
        clock[0] += 10.0
        return clock[0]

    monkeypatch.setattr(worker.time, "perf_counter", tick)
    figures = ran(job(tmp_path, warm=3, few=2, slow_s=5.0), Trainer(sent))
    assert (figures["warm"], len(figures["seconds"])) == (1, 3), "one to warm up, and two"
    clock[0] = 0.0
    figures = ran(job(tmp_path, warm=3, few=2, slow_s=50.0), Trainer(sent))
    assert (figures["warm"], len(figures["seconds"])) == (3, 6), "quick steps are all done"


def test_only_rank_0_computes_a_validation(tmp_path: Path, sent: list[int]) -> None:
    given, trainer = job(tmp_path), Trainer(sent)
    assert validated(given, ENV, trainer) == 0.5  # type: ignore[arg-type]
    other = RankEnv(1, 2, "127.0.0.1", 1)
    assert math.isnan(validated(given, other, trainer))  # type: ignore[arg-type]
    assert sent[0] == 2 * VALIDATION_BYTES, "and all take part"


def test_ranks_meet_in_turn_and_rank_0_leaves_last() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1] - BESIDE
    gathered: dict[int, list[list[float]]] = {}
    order: list[int] = []

    def work(rank: int) -> None:
        meeting = Meeting(RankEnv(rank, 2, "127.0.0.1", port), timeout=20.0)
        meeting.wait()
        gathered[rank] = [meeting.all_gather(rank + 0.1), meeting.all_gather(rank * 1e-300)]
        if rank:
            order.append(rank)
        meeting.leave()
        if not rank:
            order.append(rank)

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert gathered[0] == gathered[1] == [[0.1, 1.1], [0.0, 1e-300]]
    assert order == [1, 0]


def test_bytes_are_counted_on_the_interface_of_the_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    table = (
        "Inter-|   Receive  |  Transmit\n"
        " face |bytes packets|bytes packets\n"
        "    lo: 10 1 0 0 0 0 0 0 70 1 0 0 0 0 0 0\n"
        "  eth0: 20 1 0 0 0 0 0 0 90 1 0 0 0 0 0 0\n"
    )
    monkeypatch.setattr(Path, "read_text", lambda *_: table)
    monkeypatch.delenv("GLOO_SOCKET_IFNAME", raising=False)
    assert worker.sent_bytes() == 70
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "eth0,eth1")
    assert worker.sent_bytes() == 90
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "eth")
    assert worker.sent_bytes() == 0
