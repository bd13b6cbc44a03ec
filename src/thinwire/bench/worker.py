"""One rank of one contestant: `python -m thinwire.bench.worker JOB.json FOLDER`, under torchrun's
environment.

What came of it stands in FOLDER/rank{n}.json.
"""

from __future__ import annotations

import importlib
import json
import resource
import statistics
import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch._C._distributed_c10d import TCPStore

from thinwire import env
from thinwire.bench.job import Job, Place, Trainer, batches, validation

BESIDE = 1  # of MASTER_PORT: the port of the workers' own store, which no contestant sees


class Meeting:
    """Where all ranks wait for one another, outside of whatever the contestant talks through."""

    def __init__(self, place: Place, timeout: float) -> None:
        self._place, self._count = place, 0
        self._store = TCPStore(
            place.address,
            place.port + BESIDE,
            place.world,
            place.rank == 0,
            timeout=timedelta(seconds=timeout),
        )

    def wait(self) -> None:
        """Until all are here."""
        self.share(0.0)

    def share(self, value: float) -> list[float]:
        """Every rank's number, once all are here."""
        self._count += 1
        self._store.set(f"{self._count}/{self._place.rank}", repr(value))
        return [
            float(self._store.get(f"{self._count}/{rank}")) for rank in range(self._place.world)
        ]

    def leave(self) -> None:
        """The end: rank 0, whose process holds the store, goes last."""
        self._store.set(f"left/{self._place.rank}", "")
        if self._place.rank == 0:
            self._store.wait([f"left/{rank}" for rank in range(self._place.world)])


def main(job_file: str, folder: str) -> None:
    """Train as the job says."""
    job, place = Job.read(Path(job_file)), Place()
    torch.set_num_threads(env.integer("OMP_NUM_THREADS", 1))
    torch.set_float32_matmul_precision(job.matmul)
    if job.matmul == "medium":
        torch.backends.cuda.enable_flash_sdp(
            False
        )  # the CPU's, too: oneDNN takes thrice as long for its products of few rows
    meeting = Meeting(place, job.timeout)
    begun = time.perf_counter()
    name = (
        "thinwire.bench.ours"
        if job.contestant == "thinwire"
        else f"thinwire.bench.rivals.{job.contestant}"
    )
    trainer: Trainer = importlib.import_module(name).build(job, place)
    meeting.wait()
    told: dict[str, Any] = {"setup_s": time.perf_counter() - begun}
    told |= train(job, place, trainer, meeting)
    meeting.wait()
    told["peak_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    Path(folder, f"rank{place.rank}.json").write_text(json.dumps(told))
    trainer.close()
    meeting.leave()


def train(job: Job, place: Place, trainer: Trainer, meeting: Meeting) -> dict[str, Any]:
    """Steps, timed one by one; validations stand apart."""
    at = batches(job, place)
    seconds: list[float] = []
    losses: list[float] = []
    validations: list[tuple[int, float]] = []
    input_s, before, sent, warm, processor = (
        0.0,
        trainer.split(),
        sent_bytes(),
        job.warm,
        time.process_time(),
    )
    burst = 0
    for step in range(job.stop):
        if job.few and step == 1 and max(meeting.share(seconds[0])) > job.slow_s:
            warm = 1  # long steps need no more
        if (
            job.few
            and step == warm + job.few
            and max(meeting.share(statistics.mean(seconds[warm:]))) > job.slow_s
        ):
            break
        if step == warm:
            meeting.wait()
            input_s, before, sent, processor = (
                0.0,
                trainer.split(),
                sent_bytes(),
                time.process_time(),
            )
        counted, begun = sent_bytes(), time.perf_counter()
        rows = at(step)
        read = time.perf_counter()
        losses.append(trainer.step(rows[:, :-1], rows[:, 1:], job.rate(step)))
        ended = time.perf_counter()
        seconds.append(ended - begun)
        input_s += read - begun
        burst = max(burst, sent_bytes() - counted)
        if job.validate_every and ((step + 1) % job.validate_every == 0 or step + 1 == job.stop):
            apart = sent_bytes()
            validations.append((step + 1, validated(job, place, trainer)))
            meeting.wait()
            sent += sent_bytes() - apart  # some average their weights only to validate
    after = trainer.split()
    return {
        "warm": warm,
        "seconds": seconds,
        "losses": losses,
        "validation": validations,
        "input_s": input_s,
        "processor_s": time.process_time() - processor,
        "sent_bytes": sent_bytes() - sent,
        "burst_bytes": burst,
        "split": {key: after[key] - before[key] for key in after},
    }


def validated(job: Job, place: Place, trainer: Trainer) -> float:
    """Nats a token on held-out rows; rank 0 computes it (others: nan)."""
    with trainer.common() as model, torch.no_grad():
        if place.rank:
            return float("nan")
        losses = [
            float(model(rows[:, :-1], rows[:, 1:])[1]) * len(rows) for rows in validation(job)
        ]
    return sum(losses) / job.windows


def sent_bytes() -> int:
    """What the kernel has counted on the interface that ranks talk over."""
    device = env.text("GLOO_SOCKET_IFNAME", "lo").partition(",")[0]
    for line in Path("/proc/net/dev").read_text().splitlines():
        name, _, numbers = line.partition(":")
        if name.strip() == device:
            return int(numbers.split()[8])
    return 0


if __name__ == "__main__":
    main(*sys.argv[1:])
