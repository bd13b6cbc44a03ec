"""Run one rank of one contestant, under torchrun's environment.

`python -m thinwire.bench.worker JOB.json FOLDER` writes its figures to FOLDER/rank{n}.json.
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
from thinwire.bench.job import Job, RankEnv, Trainer, batches, validation

BESIDE = 1  # of MASTER_PORT: the port of the workers' own store, which no contestant sees


class Meeting:
    """Let all ranks wait for one another, outside of the contestant's own communication."""

    def __init__(self, rank_env: RankEnv, timeout: float) -> None:
        self._rank_env, self._count = rank_env, 0
        self._store = TCPStore(
            rank_env.address,
            rank_env.port + BESIDE,
            rank_env.world,
            rank_env.rank == 0,
            timeout=timedelta(seconds=timeout),
        )

    def wait(self) -> None:
        """Wait until all ranks are here."""
        self.all_gather(0.0)

    def all_gather(self, value: float) -> list[float]:
        """Return every rank's number, once all are here."""
        self._count += 1
        self._store.set(f"{self._count}/{self._rank_env.rank}", repr(value))
        return [
            float(self._store.get(f"{self._count}/{rank}")) for rank in range(self._rank_env.world)
        ]

    def leave(self) -> None:
        """End the meeting: rank 0, whose process holds the store, goes last."""
        self._store.set(f"left/{self._rank_env.rank}", "")
        if self._rank_env.rank == 0:
            self._store.wait([f"left/{rank}" for rank in range(self._rank_env.world)])


def main(job_file: str, folder: str) -> None:
    """Train a job's contestant on this rank, and write the figures."""
    job, rank_env = Job.read(Path(job_file)), RankEnv()
    # 1. The same threads and arithmetic for all contestants.
    torch.set_num_threads(env.integer("OMP_NUM_THREADS", 1))
    torch.set_float32_matmul_precision(job.matmul)
    # The CPU's flash attention, too: oneDNN takes thrice as long for its products of few rows.
    if job.matmul == "medium":
        torch.backends.cuda.enable_flash_sdp(False)
    meeting = Meeting(rank_env, job.timeout)
    # 2. Set up, and begin together: setup is timed apart from steps.
    begun = time.perf_counter()
    name = (
        "thinwire.bench.ours"
        if job.contestant == "thinwire"
        else f"thinwire.bench.rivals.{job.contestant}"
    )
    trainer: Trainer = importlib.import_module(name).build(job, rank_env)
    meeting.wait()
    figures: dict[str, Any] = {"setup_s": time.perf_counter() - begun}
    figures |= train(job, rank_env, trainer, meeting)
    # 3. Figures first, as closing may hang in a rival's threads.
    meeting.wait()
    figures["peak_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    Path(folder, f"rank{rank_env.rank}.json").write_text(json.dumps(figures))
    trainer.close()
    meeting.leave()


def train(job: Job, rank_env: RankEnv, trainer: Trainer, meeting: Meeting) -> dict[str, Any]:
    """Train, and time the steps one by one, without the validations."""
    at = batches(job, rank_env)
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
    # `few`: after one slow step, and after `few` timed ones, stop early, if it is slow on any rank.
    burst = 0
    for step in range(job.stop):
        # Long steps need no more warm-up.
        if job.few and step == 1 and max(meeting.all_gather(seconds[0])) > job.slow_s:
            warm = 1
        if (
            job.few
            and step == warm + job.few
            and max(meeting.all_gather(statistics.mean(seconds[warm:]))) > job.slow_s
        ):
            break
        # The warm-up is over: begin all counters anew, together.
        if step == warm:
            meeting.wait()
            input_s, before, sent, processor = (
                0.0,
                trainer.split(),
                sent_bytes(),
                time.process_time(),
            )
        # The step itself: input, then forward, backward and sending.
        counted, begun = sent_bytes(), time.perf_counter()
        rows = at(step)
        read = time.perf_counter()
        losses.append(trainer.step(rows[:, :-1], rows[:, 1:], job.rate(step)))
        ended = time.perf_counter()
        seconds.append(ended - begun)
        input_s += read - begun
        burst = max(burst, sent_bytes() - counted)
        # Validations are not part of a step: neither their seconds nor their bytes. Some
        # contestants average their weights only to validate.
        if job.validate_every and ((step + 1) % job.validate_every == 0 or step + 1 == job.stop):
            before_validation = sent_bytes()
            validations.append((step + 1, validated(job, rank_env, trainer)))
            meeting.wait()
            sent += sent_bytes() - before_validation
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


def validated(job: Job, rank_env: RankEnv, trainer: Trainer) -> float:
    """Return nats a token on held-out rows; rank 0 computes it (others: nan)."""
    with trainer.common() as model, torch.no_grad():
        if rank_env.rank:
            return float("nan")
        losses = [
            float(model(rows[:, :-1], rows[:, 1:])[1]) * len(rows) for rows in validation(job)
        ]
    return sum(losses) / job.windows


def sent_bytes() -> int:
    """Return the bytes that the kernel has counted on the interface that ranks send over."""
    device = env.text("GLOO_SOCKET_IFNAME", "lo").partition(",")[0]
    for line in Path("/proc/net/dev").read_text().splitlines():
        name, _, numbers = line.partition(":")
        if name.strip() == device:
            return int(numbers.split()[8])
    return 0


if __name__ == "__main__":
    main(*sys.argv[1:])
