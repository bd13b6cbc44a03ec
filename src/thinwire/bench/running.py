"""Run one job of a bench in a lab, a process on each host, and read each rank's figures."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from thinwire.bench.job import Job
from thinwire.errors import BenchError
from thinwire.lab import Lab
from thinwire.lab.delay import LineStats

BEGIN_S, STEP_S = 1800.0, 2.0
"""What a job may take: setting up, warming up and long steps of few; then each step. The slowest so
far took a third of it, and 1.67 s."""


def limit_s(job: Job) -> float:
    """Return the seconds after which a job counts as hanging."""
    return BEGIN_S + STEP_S * job.stop


def ran(lab: Lab, job: Job, python: Path) -> tuple[list[dict[str, Any]], LineStats | None]:
    """Run a job; return each rank's figures, and how well the lab delayed its packets.

    Raises:
        BenchError: it failed, or hung; the reason of the host that failed first.
        LabError: the lab failed, which is no fault of the job's.
    """
    lines_of: dict[str, list[str]] = {host: [] for host in lab.hosts}

    def on_line(host: str, line: str, complaint: bool) -> None:  # noqa: ARG001
        lines_of[host] = [*lines_of[host][-40:], line]

    with tempfile.TemporaryDirectory(prefix="thinwire-bench-") as scratch:
        file = Path(scratch) / "job.json"
        job.write(file)
        command = [str(python), "-m", "thinwire.bench.worker", str(file), scratch]
        done = lab.run(command, timeout=limit_s(job), grace=20.0, on_line=on_line)
        # A host that is gone is the lab's failure, not the job's: each must still answer.
        if done.worst:
            for host in lab.hosts:
                lab.call(host, ["true"])  # where one is gone, so is what ran there
            # The first host that ended by itself has the reason; without one the time was up.
            failed = next(
                (host for host, code in done.codes.items() if code and host not in done.stopped),
                None,
            )
            if failed is None:
                last = _reason(lines_of[lab.hosts[0]])
                raise BenchError(
                    f"not done in {limit_s(job):,.0f} s, the limit for {job.stop:,} steps; "
                    f"{lab.hosts[0]}'s last line: {last}"
                )
            raise BenchError(
                f"{failed}: {_reason(lines_of[failed]) or f'exit code {done.codes[failed]}'}"
            )
        return [
            json.loads((Path(scratch) / f"rank{rank}.json").read_text())
            for rank in range(len(lab.hosts))
        ], done.line


def _reason(lines: list[str]) -> str:
    """Return the line with the reason: the last that looks like an error's."""
    texts = [line.strip() for line in lines if line.strip()]
    errors = [
        line
        for line in texts
        if "Error" in line.partition(":")[0] or line.startswith("terminate called")
    ]
    return (errors or texts or [""])[-1][:500]
