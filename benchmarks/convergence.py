"""Loss against bytes at equal tokens: every strategy of a table on the same model, text, batches
and seeds.

    python -m benchmarks.convergence --seeds 3 --json benchmarks/results/convergence.json

Each run is `thinwire train --workers 2`, whose figures come from its `--json`. Runs that stand in
the JSON file already are kept, so a table may grow from day to day. Bytes are of all ranks and of
the whole run: start-up broadcast, votes, validation and checks included.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from thinwire import Strategy
from thinwire.bench.records import environment
from thinwire.how import gather, native, two_shot
from thinwire.on import deltas, nesterov, sgd
from thinwire.recipes import dense, powersgd, sparseloco, topk_sgd
from thinwire.what import feedback, identity, topk, uniform
from thinwire.when import every

MODEL = "llama-nano,num_hidden_layers=2"
BATCH, CONTEXT, WARMUP, LR = 8, 128, 100, 3e-3
STEPS = {"quarter": 400, "whole": 1600, "four": 6400}


@dataclass(frozen=True)
class Row:
    """A strategy as run: its name, what it is, AdamW's first beta, and the row that it is measured
    against."""

    name: str
    strategy: Strategy
    beta1: float = 0.9
    against: str = "dense"


def sparse(k: int, per: int) -> Strategy:
    """Every step's update: the k largest of `per` entries in 2 bits, with feedback."""
    return Strategy(
        every(1),
        feedback(topk(k, per=per) >> uniform(2, grid="rise")),
        gather(),
        deltas(outer=sgd(1.0)),
    )


def averaged(period: int, exact: bool, outer: Any = None) -> Strategy:
    what, how = (identity(), native()) if exact else (uniform(4), two_shot())
    return Strategy(every(period), what, how, deltas(outer=outer or sgd(1.0)))


ROWS = (
    Row("dense", dense()),
    Row("dense, beta1 0.5", dense(), beta1=0.5),
    Row("top-k 8 of 64 of each step's update, 2 bits, feedback", sparse(8, 64), beta1=0.2),
    Row("local steps H=10, fp32 deltas", averaged(10, exact=True)),
    Row(
        "local steps H=10, 4-bit deltas",
        averaged(10, exact=False),
        against="local steps H=10, fp32 deltas",
    ),
    Row("DiLoCo H=10, 4 bits", averaged(10, exact=False, outer=nesterov(0.3, 0.8))),
    Row("DiLoCo H=30, 4 bits", averaged(30, exact=False, outer=nesterov(0.5, 0.8))),
    Row("SparseLoCo-like H=15", sparseloco(period=15, lr=1.0)),
    Row("PowerSGD rank 2", powersgd(rank=2)),
    Row("top-k 1 % of gradients", topk_sgd(fraction=0.01)),
)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument(
        "--length", choices=STEPS, default="whole", help="tokens: whole is 13 to a parameter"
    )
    parser.add_argument("--only", action="append", metavar="NAME", help="a row's name; all without")
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/convergence.json"))
    asked = parser.parse_args()
    held: dict[str, Any] = (
        json.loads(asked.json.read_text())
        if asked.json.exists()
        else {"environment": environment(), "runs": []}
    )
    steps = STEPS[asked.length]
    for seed in range(asked.seeds):
        for row in ROWS:
            if asked.only and row.name not in asked.only:
                continue
            if find(held["runs"], row, steps, seed) is None:
                held["runs"].append(trained(row, steps, seed))
                asked.json.write_text(json.dumps(held, indent=1) + "\n")
    print(table(held["runs"], steps))


def find(runs: list[dict[str, Any]], row: Row, steps: int, seed: int) -> dict[str, Any] | None:
    wanted = (repr(row.strategy), row.beta1, steps, seed)
    return next(
        (
            run
            for run in runs
            if (run["strategy"], run["beta1"], run["steps"], run["seed"]) == wanted
        ),
        None,
    )


def trained(row: Row, steps: int, seed: int) -> dict[str, Any]:
    """One run of a row."""
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "strategy.toml"
        file.write_text(row.strategy.to_toml())
        flags = [
            f"--model={MODEL}",
            f"--steps={steps}",
            f"--batch={BATCH}",
            f"--context={CONTEXT}",
            f"--lr={LR}",
            f"--warmup={WARMUP}",
        ]
        flags += [
            f"--beta1={row.beta1}",
            f"--strategy={file}",
            f"--seed={seed}",
            "--save-every=0",
            f"--validate-every={steps // 4}",
        ]
        command = [
            sys.executable,
            "-m",
            "thinwire",
            "train",
            "--json",
            "--workers=2",
            *flags,
            "--sample=0",
            f"--out={scratch}/out",
        ]
        ran = subprocess.run(command, check=False, capture_output=True, text=True)
        if ran.returncode:
            raise RuntimeError(f"{row.name}, seed {seed}: {ran.stderr}")
        told = json.loads(ran.stdout)
    result = told["result"]
    kept = {
        "name": row.name,
        "strategy": repr(row.strategy),
        "beta1": row.beta1,
        "steps": steps,
        "seed": seed,
        "parameters": told["parameters"],
        "tokens": result["tokens"],
        "nats": result["validation_nats_per_token"],
        "ratio_all": result["ratio_all"],
        "sent_bytes": sum(result["sent_bytes"]),
        "around_bytes": sum(result["around_bytes"]),
        "train_s": round(result["train_s"], 1),
        "validation": told["curve"]["validation"],
    }
    print(json.dumps(kept), flush=True)
    return kept


def table(runs: list[dict[str, Any]], steps: int) -> str:
    """The rows at one length as Markdown: means over the seeds that both sides of a gap have."""
    lines = [
        "| strategy | β1 | fewer bytes, all told | validation, nats/byte | gap to (each seed) |",
        "|---|---|---|---|---|",
    ]
    for row in ROWS:
        own = {
            run["seed"]: run
            for run in runs
            if (run["strategy"], run["beta1"], run["steps"])
            == (repr(row.strategy), row.beta1, steps)
        }
        if not own:
            continue
        nats = [run["nats"] for run in own.values()]
        spread = f" ± {statistics.stdev(nats):.4f}" if len(nats) > 1 else ""
        ratio = statistics.fmean(run["ratio_all"] for run in own.values())
        gaps = {name: _gaps(own, name, runs, steps) for name in _against(row)}
        told = "; ".join(_told(name, each) for name, each in gaps.items() if each)
        lines.append(
            f"| {row.name} | {row.beta1} | {ratio:.1f}x | {statistics.fmean(nats):.4f}{spread} | "
            f"{told or '–'} |"
        )
    return "\n".join(lines)


def _told(name: str, gaps: list[float]) -> str:
    return f"{name}: {statistics.fmean(gaps):+.2f} % ({', '.join(f'{gap:+.2f}' for gap in gaps)})"


def _against(row: Row) -> tuple[str, ...]:
    if row.name.startswith("dense"):
        return ()
    if row.against != "dense":
        return (row.against,)
    return tuple(each.name for each in ROWS if each.name.startswith("dense"))


def _gaps(
    own: dict[int, dict[str, Any]], name: str, runs: list[dict[str, Any]], steps: int
) -> list[float]:
    other = {run["seed"]: run for run in runs if run["name"] == name and run["steps"] == steps}
    return [
        100 * (own[seed]["nats"] / other[seed]["nats"] - 1)
        for seed in sorted(own.keys() & other.keys())
    ]


if __name__ == "__main__":
    main()
