"""What the benchmarks share: ranks on loopback gloo, the model, the machine in words, a table and a
JSON file."""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from thinwire.bench.records import environment
from thinwire.models.gpt import GPT, GPTConfig

CONFIG = GPTConfig(vocab=4096, context=64, layers=6, heads=6, width=384)  # 12.2 M parameters


def model() -> GPT:
    """The model of every benchmark, the same bits each time."""
    torch.manual_seed(0)
    return GPT(CONFIG)


def batch(rows: int, length: int, seed: int) -> torch.Tensor:
    """Random tokens: (rows, length) int64. What they say costs no time, so they need no corpus."""
    return torch.randint(
        CONFIG.vocab, (rows, length), generator=torch.Generator().manual_seed(seed)
    )


def parser(description: str | None) -> argparse.ArgumentParser:
    """Arguments that every benchmark takes."""
    made = argparse.ArgumentParser(description=(description or "").split("\n")[0])
    made.add_argument("--json", type=Path, metavar="FILE", help="write the figures there, too")
    return made


def emit(file: Path | None, record: dict[str, Any]) -> None:
    """Write one JSON object, the environment first."""
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps({"environment": environment(), **record}, indent=1) + "\n")


def with_kept(
    file: Path | None, rows: Sequence[dict[str, Any]], *names: str
) -> list[dict[str, Any]]:
    """The rows measured now, after those of the file that are of other things, told apart by these
    names."""
    now = {tuple(row[name] for name in names) for row in rows}
    before = json.loads(file.read_text())["rows"] if file is not None and file.exists() else []
    return [row for row in before if tuple(row.get(name) for name in names) not in now] + list(rows)


def table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Print rows in columns, floats to four places."""
    lines = [
        list(head),
        *(
            [f"{cell:,.4f}" if isinstance(cell, float) else str(cell) for cell in row]
            for row in rows
        ),
    ]
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    for first, *others in lines:
        print(
            "  ".join(
                [
                    first.ljust(widths[0]),
                    *(cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True)),
                ]
            )
        )


class Neighbours:
    """Cores that other processes kept busy while the block ran: timings are worth little where it
    is not near 0.

    What the kernel counts as busy, less what this process and its children (those that have ended)
    used.
    """

    cores = 0.0

    def __enter__(self) -> Neighbours:
        self._before = self._look()
        return self

    def __exit__(self, *_: object) -> None:
        wall, busy = (
            after - before for after, before in zip(self._look(), self._before, strict=True)
        )
        self.cores = max(0.0, busy / wall)

    def _look(self) -> tuple[float, float]:
        user, nice, system, _, _, irq, softirq, *_ = map(
            int, Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]
        )
        own = sum(os.times()[:4])
        return time.monotonic(), (user + nice + system + irq + softirq) / os.sysconf(
            "SC_CLK_TCK"
        ) - own


def run_ranks(world: int, work: Callable[..., Any], *args: Any) -> Any:
    """`work(rank, *args)` in `world` fresh processes of one thread each, joined by gloo on
    loopback; what rank 0 returns."""
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe(duplex=False)
    ranks = [
        context.Process(
            target=_rank, args=(rank, world, store.port, there, work, args), daemon=True
        )
        for rank in range(world)
    ]
    for rank in ranks:
        rank.start()
    there.close()
    try:
        result = here.recv()  # raises EOFError once no rank is left that could send
        for rank in ranks:
            rank.join()
        return result
    except EOFError:
        raise SystemExit(
            f"no result: exit codes by rank {[rank.exitcode for rank in ranks]}; the tracebacks "
            "stand above"
        ) from None
    finally:
        for rank in ranks:
            rank.terminate()
            rank.join()


def _rank(
    rank: int, world: int, port: int, pipe: Any, work: Callable[..., Any], args: tuple[Any, ...]
) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", store=dist.TCPStore("127.0.0.1", port), rank=rank, world_size=world
    )
    result = work(rank, *args)
    if rank == 0:
        pipe.send(result)
    pipe.close()
    dist.barrier()
    dist.destroy_process_group()
