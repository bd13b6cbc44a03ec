"""Step time of ZeRO++ over FSDP2's own: 4 ranks as 2 nodes of 2, a thin wire between the nodes.

    python -m benchmarks.zeropp --json benchmarks/results/zeropp.json

Each rank, of one thread, trains three copies of a GPT in the lab, one step in turn: in FSDP2 as it
is, with exact collectives in two levels (what the route alone saves), and with the trio, weights in
8 bits, gradients in 4 and weights kept in the node. A barrier stands before each step, the slowest
rank's time counts, and ratios are taken within each turn. FSDP2 keeps nothing in the node: that is
part of ZeRO++. On two cores four ranks share them, so computing takes longer than it would.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard

from benchmarks.common import emit, parser, table
from thinwire.adapters.zeropp import ThinCollectives, thin_collectives
from thinwire.lab import Lab
from thinwire.models.gpt import GPT, GPTConfig
from thinwire.net import shapes
from thinwire.what import identity, uniform

CONFIG = GPTConfig(vocab=1024, context=64, layers=4, heads=4, width=256)  # 3.7 M parameters
NODE, INNER = 2, 10e9
RATES = {"100 Mb/s": 1e8, "1 Gb/s": 1e9}
DENSE, EXACT, TRIO = "FSDP2", "exact, two levels", "ZeRO++"
SIDES = (DENSE, EXACT, TRIO)
WARM = 2


class Side:
    """One copy of the model, its optimiser and its collectives."""

    def __init__(self, kind: str) -> None:
        torch.manual_seed(0)
        self.model = GPT(CONFIG)
        after = NODE if kind == TRIO else None
        for block in self.model.blocks:
            fully_shard(block, reshard_after_forward=after)
        fully_shard(self.model)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=3e-4)
        self.thin: ThinCollectives | None = None
        if kind != DENSE:
            weights, gradients = (
                (uniform(8), uniform(4)) if kind == TRIO else (identity(), identity())
            )
            self.thin = thin_collectives(
                self.model, weights=weights, gradients=gradients, node_size=NODE
            )

    def step(self, tokens: torch.Tensor) -> float:
        begun = time.perf_counter()
        _, loss = self.model(tokens[:, :-1], tokens[:, 1:])
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return time.perf_counter() - begun


def work(turns: int, rows: int) -> None:
    """Run one rank, and print its figures on rank 0."""
    dist.init_process_group("gloo", timeout=timedelta(minutes=5))
    rank, sides = dist.get_rank(), {kind: Side(kind) for kind in SIDES}
    seconds: dict[str, list[float]] = {kind: [] for kind in SIDES}
    for turn in range(-WARM, turns):
        draws = torch.Generator().manual_seed(1000 * (turn + WARM) + rank)
        tokens = torch.randint(CONFIG.vocab, (rows, CONFIG.context + 1), generator=draws)
        for kind in SIDES if turn % 2 else SIDES[::-1]:
            dist.barrier()
            taken = torch.tensor(sides[kind].step(tokens))
            dist.all_reduce(taken, op=dist.ReduceOp.MAX)
            if turn >= 0:
                seconds[kind].append(taken.item())
    sent = {
        kind: {
            "sent_bytes": side.thin.report().sent_bytes / (turns + WARM),
            "between_nodes_bytes": side.thin.report().between_nodes_bytes / (turns + WARM),
        }
        for kind, side in sides.items()
        if side.thin is not None
    }
    if rank == 0:
        print(json.dumps({"seconds": seconds, "a_step": sent}))
    for side in sides.values():
        if side.thin is not None:
            side.thin.close()
    dist.barrier()
    dist.destroy_process_group()


def measured(rate: float, turns: int, rows: int) -> dict[str, Any]:
    """Return rank 0's figures, and MB a step that left a node, from one lab."""
    lines: list[str] = []
    argv = [sys.executable, "-m", "benchmarks.zeropp", "--work"]
    argv += ["--turns", str(turns), "--rows", str(rows)]

    def on_line(host: str, line: str, complaint: bool) -> None:
        if host == "host0" and not complaint and line.startswith("{"):
            lines.append(line)
        elif complaint:
            print(host, line, file=sys.stderr)

    with Lab(shapes.two_level(2, NODE, INNER, rate)) as lab:
        ran = lab.run(argv, timeout=1500, on_line=on_line)
    if ran.worst or not lines:
        raise RuntimeError(f"a rank failed: {ran.codes}")
    return json.loads(lines[-1])  # type: ignore[no-any-return]


def main() -> None:
    made = parser(__doc__)
    made.add_argument("--turns", type=int, default=10)
    made.add_argument("--rows", type=int, default=2)
    made.add_argument("--work", action="store_true", help="be one rank; the program does it itself")
    options = made.parse_args()
    if options.work:
        work(options.turns, options.rows)
        return
    rows, told = [], []
    for name, rate in RATES.items():
        found = measured(rate, options.turns, options.rows)
        dense = found["seconds"][DENSE]
        for kind in SIDES:
            seconds = found["seconds"][kind]
            ratios = [a / b for a, b in zip(seconds, dense, strict=True)]
            sent = found["a_step"].get(kind, {})
            told.append(
                {
                    "between nodes": name,
                    "collectives": kind,
                    "seconds": seconds,
                    "over_fsdp2": statistics.geometric_mean(ratios),
                    "least": min(ratios),
                    "most": max(ratios),
                    **sent,
                }
            )
            rows.append(
                (
                    name,
                    kind,
                    f"{statistics.median(seconds):.2f}",
                    f"{statistics.geometric_mean(ratios):.3f}",
                    f"{min(ratios):.3f} to {max(ratios):.3f}",
                    f"{sent['between_nodes_bytes'] / 1e6:.2f}" if sent else "",
                )
            )
    table(("between nodes", "collectives", "step, s", "over FSDP2", "range", "MB out"), rows)
    emit(options.json, {"turns": options.turns, "rows": told})


if __name__ == "__main__":
    main()
