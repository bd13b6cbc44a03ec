"""Kill a run at random moments, let it resume, and compare what comes out with a run that was never
stopped.

    python -m benchmarks.kills --kills 20 --json benchmarks/results/kills.json

Every kill sends SIGKILL to one worker of `thinwire train --workers 2 --restarts 1`, at a moment
that the seed draws from the whole life of such a run: start, step, save, end. The elastic agent
starts the ranks again, and they go on from the last checkpoint. The weights and the validation loss
must be the same bits.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from thinwire.bench.records import environment

STRATEGIES = (
    "fedpaq,period=4",
    "powersgd,rank=2",
    "streaming_diloco,period=8,fragments=2,tau=2",
    "sparseloco,period=5",
    "topk_sgd",
)
JOB = [
    *(
        "--model=gpt2-nano,n_layer=2,n_embd=32",
        "--steps=160",
        "--batch=4",
        "--context=32",
        "--windows=16",
    ),
    *("--save-every=8", "--validate-every=80", "--sample=0", "--timeout=20"),
]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    draws = random.Random(asked.seed)
    whole: dict[str, tuple[str, float, float]] = {}
    kills: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as scratch:
        for number in range(asked.kills):
            strategy = STRATEGIES[number % len(STRATEGIES)]
            if strategy not in whole:
                whole[strategy] = never_stopped(strategy, Path(scratch) / f"whole-{len(whole)}")
            weights, loss, seconds = whole[strategy]
            told: dict[str, Any] = {"rank": None}
            for again in range(
                5
            ):  # a moment at which no worker lives (yet, or any more) is drawn anew
                if told["rank"] is None:
                    out = Path(scratch) / f"kill-{number}-{again}"
                    told = killed(
                        strategy, out, draws.uniform(0, 0.9 * seconds), draws.randrange(2)
                    )
            told["same"] = (told.pop("weights"), told["loss"]) == (weights, loss)
            kills.append(told)
            print(json.dumps(told), flush=True)
            if asked.json:
                asked.json.write_text(
                    json.dumps(
                        {"environment": environment(), "seed": asked.seed, "kills": kills}, indent=1
                    )
                    + "\n"
                )
    same = sum(kill["same"] for kill in kills)
    resumed = sum(bool(kill["resumed_at"]) for kill in kills)
    print(
        f"{same} of {len(kills)} runs came out the same, bit for bit; {resumed} resumed from a "
        "checkpoint"
    )
    sys.exit(same != len(kills))


def start(strategy: str, out: Path, *more: str) -> subprocess.Popen[str]:
    command = [
        sys.executable,
        "-m",
        "thinwire",
        "train",
        "--json",
        "--workers=2",
        f"--strategy={strategy}",
        f"--out={out}",
        *JOB,
        *more,
    ]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def never_stopped(strategy: str, out: Path) -> tuple[str, float, float]:
    """The digest of the weights, the loss, and the seconds that the whole run took."""
    begun = time.monotonic()
    told = ended(start(strategy, out))
    return digest(out), told["result"]["validation_nats_per_token"], time.monotonic() - begun


def killed(strategy: str, out: Path, after_s: float, victim: int) -> dict[str, Any]:
    """A run of which one worker is killed after a while."""
    process = start(strategy, out, "--restarts=1")
    time.sleep(after_s)
    target = workers(process.pid).get(victim)
    if target is not None:
        os.kill(target, signal.SIGKILL)
    told = ended(process)
    return {
        "strategy": strategy,
        "after_s": round(after_s, 2),
        "rank": victim if target is not None else None,
        "resumed_at": told["result"]["resumed_at"],
        "loss": told["result"]["validation_nats_per_token"],
        "weights": digest(out),
    }


def ended(process: subprocess.Popen[str]) -> dict[str, Any]:
    out, err = process.communicate(timeout=300)
    if process.returncode:
        raise RuntimeError(f"exit code {process.returncode}: {err}")
    told: dict[str, Any] = json.loads(out)
    return told


def workers(launcher: int) -> dict[int, int]:
    """The process of each rank that the launcher has started."""
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                variables = (
                    (entry / "environ").read_bytes().split(b"\0") if parent == launcher else []
                )
            except OSError:  # it ended meanwhile
                continue
            found |= {
                int(line.partition(b"=")[2]): int(entry.name)
                for line in variables
                if line.startswith(b"RANK=")
            }
    return found


def digest(out: Path) -> str:
    return hashlib.sha256((out / "model" / "model.safetensors").read_bytes()).hexdigest()


if __name__ == "__main__":
    main()
