"""Which codecs need feedback: each family, bare and in `feedback(…)`, trains the same small model
on the same text.

    python -m benchmarks.families --json benchmarks/results/families.json
    python -m benchmarks.families --markdown  # trains nothing: the tables of results/families.md

Two ranks in one process (the local driver), each with its own batch: each step's gradients are
compressed and averaged, under SGD with momentum 0.9 and under AdamW, and some under SGD without
momentum, of which feedback's theory speaks. Runs that stand in the JSON file are
kept: stopped, the same command goes on. A new codec is one more row of `ROWS`, five seconds a run.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from thinwire import Strategy
from thinwire.bench.records import environment
from thinwire.core import Codec, Part, RankContext, Spec, State
from thinwire.data.corpus.english import english
from thinwire.data.loaders.batches import Batches, validation_windows
from thinwire.drive.local import run
from thinwire.engine.layout import roles
from thinwire.errors import StrategyError
from thinwire.how import gather, native
from thinwire.models.gpt import GPT, GPTConfig
from thinwire.on import gradients
from thinwire.strategy.reading import spelled
from thinwire.when import every

Key: TypeAlias = tuple[str, str, float, int, int]
Make: TypeAlias = "Callable[[Run], dict[str, Any]]"
Look: TypeAlias = "Callable[[int, Tensor, Tensor, Tensor], None]"
"""Sees, at each step, rank 0's contribution, and its residual before and after."""

CONFIG = GPTConfig(context=32, layers=2, heads=4, width=64, tie=False)  # 133,440 parameters
WORLD, BATCH, STEPS, WARMUP, WINDOWS = 2, 4, 300, 30, 256
KNOWS_NOTHING = math.log(256)  # nats/byte where every run begins
NEAR = 0.01  # a codec this close to dense, or closer, looks for no other rate
LOST = 10.0  # a training loss above this, or no number, ends a run


@dataclass(frozen=True)
class Optimizer:
    """An optimiser and its learning rates, falling: a codec goes down from dense's best until its
    loss no longer falls."""

    name: str
    title: str
    rates: tuple[float, ...]


OPTIMIZERS = (
    Optimizer("sgd", "SGD", (0.3, 0.1, 0.03, 0.01)),
    Optimizer("adamw", "AdamW", (3e-3,)),
    Optimizer("plain", "SGD without momentum", (3.0, 1.0, 0.3, 0.1)),
)
ALL = tuple(each.name for each in OPTIMIZERS)
DENSE_SEEDS = (
    3  # of the dense row, at its best rate: their spread is what a gap is to be measured against
)


@dataclass(frozen=True)
class Row:
    """A codec in code. momentum: what SGD keeps, 0 where the codec brings its own. under: the
    optimisers that it makes sense under."""

    code: str
    momentum: float = 0.9
    under: tuple[str, ...] = ("sgd", "adamw")

    @property
    def variants(self) -> tuple[str, ...]:
        """The codec bare, and in feedback unless it loses nothing or remembers by itself."""
        again = f"feedback({self.code})"
        try:
            spelled("what", again)
        except StrategyError:
            return (self.code,)
        return self.code, again


DENSE = Row("identity()", under=ALL)
ROWS = (
    DENSE,
    Row("cast('bf16')"),
    Row("uniform(8)"),
    Row("uniform(4)"),
    Row("uniform(2)", under=ALL),
    Row("uniform(2, rounding='stochastic')"),
    Row("uniform(1, grid='rise')", under=ALL),
    Row("sign()", under=ALL),
    Row("ternary(rounding='nearest')", under=ALL),
    Row("ternary()"),
    Row("natural()"),
    Row("fp8()"),
    Row("fp4()"),
    Row("nf4()"),
    Row("scaled(32) >> nf4(0)"),
    Row("loglevels(4)"),
    Row("powerlevels(4)"),
    Row("hadamard(256) >> uniform(2)", under=ALL),
    Row("scaled(32, 2, zero=True) >> uniform(2, 0, grid='rise')"),
    Row("budget(2.5)"),
    Row("entropy(uniform(4))"),
    Row("lattice(2)"),
    Row("codebook(2, 4)"),
    Row("topk(0.01)", under=ALL),
    Row("clip(topk(0.01), times=2.0)"),
    Row("threshold(3.0, of='rms')"),
    Row("sampled(0.01)"),
    Row("blockk(0.01, block=16)"),
    Row("randomk(0.01)", under=ALL),
    Row("randomk(0.01, unbiased=True)"),
    Row("dct(16) >> topk(0.01)"),
    Row("lowrank(2)"),
    Row("alternating(2)", under=ALL),
    Row("svd(2)"),
    Row("als(2)"),
    Row("tensortrain(2, fold=4)"),
    Row("cp(2, fold=4)"),
    Row("dgc(topk(0.01))", momentum=0.0, under=("sgd",)),
    Row("ef21(topk(0.01))"),
    Row("tucker(0.05)"),
)


@dataclass(frozen=True)
class Run:
    """One training run: what it is known by in the JSON file."""

    codec: str
    optimizer: str
    rate: float
    seed: int
    momentum: float = 0.9

    @property
    def key(self) -> Key:
        return self.codec, self.optimizer, self.rate, self.seed, STEPS


class Runs:
    """What the JSON file holds, and the runs that are still to be made."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.held: dict[str, Any] = (
            json.loads(file.read_text())
            if file.exists()
            else {"environment": environment(), "runs": []}
        )
        self.by_key: dict[Key, dict[str, Any]] = {_key(kept): kept for kept in self.held["runs"]}

    def best(
        self, row: Row, codec: str, optimizer: Optimizer, make: Make | None, seed: int = 0
    ) -> dict[str, Any] | None:
        """The run of the best rate: down the rates until the loss no longer falls. Without `make`,
        only what is held counts."""
        found: dict[str, Any] | None = None
        for rate in optimizer.rates:
            told = self.get(Run(codec, optimizer.name, rate, seed, row.momentum), make)
            if told is None or (found is not None and nats(told) >= nats(found) < math.inf):
                break
            found = told if found is None or nats(told) < nats(found) else found
            dense = self.get(Run(DENSE.code, optimizer.name, rate, seed), None)
            if (
                row is not DENSE
                and dense is not None
                and nats(told) <= (1 + NEAR) * nats(dense) < math.inf
            ):
                break
        return found

    def get(self, each: Run, make: Make | None) -> dict[str, Any] | None:
        if each.key not in self.by_key and make is not None:
            begun = time.perf_counter()
            made = make(each)
            self.by_key[each.key] = made
            self.held["runs"].append(made)
            self._save()
            told = (
                f"{made['nats']:.4f} nats/byte"
                if made["status"] == "done"
                else made.get("error", made["status"])
            )
            took = time.perf_counter() - begun
            print(
                (
                    f"{each.optimizer} {each.rate:g} seed {each.seed} {each.codec}: {told}, "
                    f"{took:.0f} s"
                ),
                file=sys.stderr,
                flush=True,
            )
        return self.by_key.get(each.key)

    def _save(self) -> None:
        written = self.file.with_suffix(".new")
        written.write_text(json.dumps(self.held, indent=1) + "\n")
        written.replace(self.file)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--only", action="append", metavar="CODEC", help="a row's code; all without"
    )
    parser.add_argument(
        "--optimizer",
        action="append",
        choices=[each.name for each in OPTIMIZERS],
        help="all without",
    )
    parser.add_argument(
        "--markdown", action="store_true", help="train nothing: show what the JSON file holds"
    )
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/families.json"))
    asked = parser.parse_args()
    torch.set_num_threads(1)
    runs = Runs(asked.json)
    make = None if asked.markdown else Task().trained
    for optimizer in (
        each for each in OPTIMIZERS if not asked.optimizer or each.name in asked.optimizer
    ):
        rows = [
            row
            for row in ROWS
            if optimizer.name in row.under and (not asked.only or row.code in asked.only)
        ]
        for number, row in enumerate(rows, 1):
            for codec in row.variants:
                best = runs.best(row, codec, optimizer, make)
                if row is DENSE and best is not None:
                    for seed in range(1, DENSE_SEEDS):
                        runs.get(Run(codec, optimizer.name, best["rate"], seed, row.momentum), make)
            if make is not None:
                print(
                    f"-- {optimizer.name}: {number} of {len(rows)} rows",
                    file=sys.stderr,
                    flush=True,
                )
    print(tables(runs))


def nats(told: dict[str, Any]) -> float:
    return float(told["nats"]) if told["status"] == "done" else math.inf


def _key(kept: dict[str, Any]) -> Key:
    return kept["codec"], kept["optimizer"], kept["rate"], kept["seed"], kept["steps"]


def tables(runs: Runs) -> str:
    """What is held as Markdown: under the first two optimisers, then under the third."""
    told = [table(runs, OPTIMIZERS[:2]), table(runs, OPTIMIZERS[2:])]
    spreads = [_spread(runs, optimizer) for optimizer in OPTIMIZERS]
    return "\n\n".join([*told, "\n".join(spread for spread in spreads if spread)])


def table(runs: Runs, optimizers: Sequence[Optimizer]) -> str:
    """A row for each codec that was tried under any of these. Gaps are to the dense run of the same
    seed, each at its own best rate."""
    head = [f"{each.title}, {how}" for each in optimizers for how in ("bare", "feedback")]
    lines = [
        f"| codec | bytes, dense / its | {' | '.join(head)} |",
        f"|---|---|{'---|' * len(head)}",
    ]
    for row in ROWS:
        cells, ratios = [], []
        for optimizer in optimizers:
            base = runs.best(DENSE, DENSE.code, optimizer, None)
            for memory in (False, True):
                codec = next((each for each in row.variants if (each != row.code) == memory), None)
                told = (
                    runs.best(row, codec, optimizer, None)
                    if codec is not None and optimizer.name in row.under
                    else None
                )
                cells.append(_cell(told, base))
                if told and base and told.get("bytes"):
                    ratios.append(base["bytes"] / told["bytes"])
        if ratios:
            low, high = (
                f"{end:.1f}" if end < 9.95 else f"{end:.0f}" for end in (min(ratios), max(ratios))
            )
            lines.append(
                f"| `{row.code}` | {low if low == high else f'{low} to {high}'} | "
                f"{' | '.join(cells)} |"
            )
    return "\n".join(lines)


def _spread(runs: Runs, optimizer: Optimizer) -> str:
    best = runs.best(DENSE, DENSE.code, optimizer, None)
    seeds = (
        [
            runs.get(Run(DENSE.code, optimizer.name, best["rate"], seed), None)
            for seed in range(DENSE_SEEDS)
        ]
        if best
        else []
    )
    each = [nats(told) for told in seeds if told is not None]
    if not each:
        return ""
    told = ", ".join(f"{one:.4f}" for one in each)
    widest = max(100 * abs(one / statistics.fmean(each) - 1) for one in each)
    return (
        f"- dense, {optimizer.title}: {told} nats/byte for {len(each)} seeds, within {widest:.1f} "
        "% of their mean"
    )


def _cell(run: dict[str, Any] | None, base: dict[str, Any] | None) -> str:
    """Show the gap to dense in per cent, with the peak rate where it is not dense's; of dense
    itself, the loss."""
    if run is None or base is None:
        return "–"
    if run["status"] != "done":
        return str(run["status"]).partition(" ")[0]
    if run is base:
        return f"{run['nats']:.3f}"
    rate = f" ({run['rate']:g})" if run["rate"] != base["rate"] else ""
    return f"{100 * (run['nats'] / base['nats'] - 1):+.1f}{rate}"


class Task:
    """The text, its validation windows, and how a run goes."""

    def __init__(self) -> None:
        train, validation = (
            torch.frombuffer(bytearray(text), dtype=torch.uint8) for text in english()
        )
        self.train = train
        self.validation = validation_windows(validation, length=CONFIG.context + 1, windows=WINDOWS)

    def trained(self, each: Run, look: Look | None = None) -> dict[str, Any]:
        """One run: its loss at the end, its bytes, and how it ended. What raises is recorded as
        failed."""
        begun = time.process_time()
        model = Flat(each.seed)
        kept = {
            "codec": each.codec,
            "optimizer": each.optimizer,
            "rate": each.rate,
            "seed": each.seed,
            "steps": STEPS,
        }
        try:
            ended = self._run(each, model, look)
        except (
            Exception
        ) as error:  # a codec that breaks must not end the study; it shows in the table
            ended = {"status": "failed", "error": f"{type(error).__name__}: {error}"}
        return {**kept, **ended, "cpu_s": round(time.process_time() - begun, 1)}

    def _run(self, each: Run, model: Flat, look: Look | None) -> dict[str, Any]:
        codec: Codec = spelled("what", each.codec)
        strategy = Strategy(
            every(1), codec, native() if codec.traits.summable else gather(), gradients()
        )
        optimizer = _optimizer(each, model.weights)
        ranks = tuple(range(WORLD))
        contexts = {rank: RankContext(rank, ranks, 0, each.seed) for rank in ranks}
        states = {
            rank: strategy.how.init(strategy.what, model.spec, contexts[rank]) for rank in ranks
        }
        batches = {
            rank: Batches(
                self.train,
                length=CONFIG.context + 1,
                batch=BATCH,
                seed=each.seed,
                rank=rank,
                world=WORLD,
            )
            for rank in ranks
        }
        sent: dict[int, float] = {}
        first = torch.empty(0)
        for step in range(STEPS):
            for group in optimizer.param_groups:
                group["lr"] = each.rate * _schedule(step)
            flights, loss = {}, 0.0
            before = _residual(states[0]) if look else None
            for rank in ranks:
                x, own = model.gradient(batches[rank].at(step))
                first = x / WORLD if rank == 0 else first
                loss += own / WORLD
                flights[rank] = strategy.how.carry(
                    strategy.what,
                    x / WORLD,
                    model.spec,
                    states[rank],
                    replace(contexts[rank], step=step),
                )
            if not loss < LOST:  # also of no number
                return {
                    "status": f"diverged at step {step}",
                    "bytes": sum(sent.values()) / WORLD / max(1, step),
                }
            with torch.no_grad():
                outcomes = run(flights, sent)
            total = outcomes[0].total
            assert all(torch.equal(total, other.total) for other in outcomes.values()), (
                "ranks disagree"
            )
            if look is not None and before is not None:
                look(step, first, before, _residual(states[0]))
            model.weights.grad = total
            optimizer.step()
        bytes_a_step = sum(sent.values()) / WORLD / STEPS
        found = model.loss(self.validation)
        status = "done" if found < KNOWS_NOTHING else f"diverged: {found:.2f} at the end"
        return {
            "status": status,
            "nats": found,
            "bytes": bytes_a_step,
            "owed": _owed(states[0], total),
        }


class Flat:
    """The model with its weights and gradients in one flat run each, laid out as the engine's
    bucket is."""

    def __init__(self, seed: int) -> None:
        torch.manual_seed(seed)
        self.model = GPT(CONFIG)
        _draw(self.model)
        role = roles(self.model)
        named = list(self.model.named_parameters())[::-1]
        parts, at = [], 0
        for name, param in named:
            parts.append(Part(name, tuple(param.shape), at, role[id(param)]))
            at += param.numel()
        self.spec = Spec(tuple(parts), 0, at, torch.float32)
        self.weights = nn.Parameter(torch.cat([param.detach().reshape(-1) for _, param in named]))
        self._grad = torch.zeros(at)
        for part, (_, param) in zip(parts, named, strict=True):
            param.data = self.weights.data[part.begin : part.end].view(part.shape)
            param.grad = self._grad[part.begin : part.end].view(part.shape)

    def gradient(self, rows: Tensor) -> tuple[Tensor, float]:
        """The gradient of a batch (B, T + 1), good until the next call, and the loss."""
        self._grad.zero_()
        _, loss = self.model(rows[:, :-1], rows[:, 1:])
        loss.backward()
        return self._grad, loss.item()

    @torch.no_grad()
    def loss(self, rows: Tensor) -> float:
        return float(self.model(rows[:, :-1], rows[:, 1:])[1])


@torch.no_grad()
def _draw(model: nn.Module) -> None:
    """Weights by their fan-in, wide embeddings, a head of zeros: SGD then leaves the start at
    once."""
    for name, param in model.named_parameters():
        if name == "head.weight":
            param.zero_()
        elif name in ("embed.weight", "place.weight"):
            nn.init.normal_(param, std=0.3)
        elif param.dim() > 1:
            nn.init.normal_(
                param,
                std=(0.5 if name.endswith("project.weight") else 1.0) / math.sqrt(param.shape[1]),
            )


def _optimizer(each: Run, weights: nn.Parameter) -> torch.optim.Optimizer:
    if each.optimizer != "adamw":
        return torch.optim.SGD(
            [weights], each.rate, momentum=each.momentum if each.optimizer == "sgd" else 0.0
        )
    return torch.optim.AdamW([weights], each.rate, betas=(0.9, 0.95), weight_decay=0.0)


def _schedule(step: int) -> float:
    """Share of the peak rate: a linear warm-up, then a cosine down to a tenth."""
    return min(1.0, (step + 1) / WARMUP) * (0.55 + 0.45 * math.cos(math.pi * step / STEPS))


def _residual(state: State) -> Tensor:
    """The one residual of a codec in feedback: (n,)."""
    (found,) = [leaf.value for path, leaf in state.walk() if path.endswith("residual")]
    return found.clone().view(-1)


def _owed(state: State, total: Tensor) -> float | None:
    """The norm of what rank 0 still owes, in last gradients; `None` without a residual."""
    residuals = [
        leaf.value.double().norm() ** 2 for path, leaf in state.walk() if path.endswith("residual")
    ]
    return float(sum(residuals) ** 0.5 / total.double().norm()) if residuals else None


if __name__ == "__main__":
    main()
