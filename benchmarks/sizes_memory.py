"""Memory by strategy, and attach of large models: part of `real_sizes`.

The peak of a process's own memory (VmHWM) is read over steps, after it was reset behind the first
ones. What a strategy takes is the difference to the same steps without one, over the parameters.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import thinwire
from benchmarks.common import run_ranks
from thinwire import Strategy
from thinwire.how import gather
from thinwire.on import deltas, nesterov
from thinwire.what import feedback, uniform
from thinwire.when import every

WIDTH, LAYERS = 2048, 10  # 16 MB a layer, 42 M parameters
BUCKET = 26.2 / (LAYERS * WIDTH * WIDTH * 4 / 1e6) * 4  # bytes a parameter of one bucket of 25 MiB
PLAIN, DDP, VIEWS = "no strategy", "DDP", "DDP, bucket views"


def every_step(store: str | None) -> Strategy:
    """Return 4 bits with feedback, the residual stored so."""
    return Strategy(what=feedback(uniform(4), store=store), how=gather())  # type: ignore[arg-type]


def diloco(store: str | None) -> Strategy:
    """Return DiLoCo every 2 steps in 4 bits, the anchor and the momentum stored so."""
    on = deltas(outer=nesterov(0.7, 0.9), store=store)  # type: ignore[arg-type]
    return Strategy(every(2), uniform(4), gather(), on)


# What each takes by design, in bytes a parameter: state that stays, and what lives while buckets
# fly. By name: strategy, bytes, and of what they are.
KINDS: dict[str, tuple[Strategy | None, float, str]] = {
    DDP: (None, 4, "buckets"),
    VIEWS: (None, 0, "gradients lie in the buckets"),
    "dense": (Strategy(), 0, "gradients lie in the buckets"),
    "4 bits": (Strategy(what=uniform(4), how=gather()), BUCKET, "a sum"),
    "feedback": (every_step(None), 8 + BUCKET, "residual, and that before until the landing"),
    "feedback, bf16": (every_step("bf16"), 4 + BUCKET, "as above"),
    "feedback, int8": (every_step("int8"), 2 + BUCKET, "as above"),
    "DiLoCo": (diloco(None), 12 + 2 * BUCKET, "anchor, momentum; deltas while they fly"),
    "DiLoCo, bf16": (diloco("bf16"), 8 + 2 * BUCKET, "as above"),
}


def memory(name: str, field: str) -> float:
    """Return a field of this process's status in bytes."""
    lines = Path(f"/proc/{name}/status").read_text(encoding="ascii").splitlines()
    return float(next(line for line in lines if line.startswith(field)).split()[1]) * 1024


def forget_peak() -> None:
    """Begin a new peak at what is in use now."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def net() -> nn.Module:
    """Make a model that is nothing but matrices."""
    torch.manual_seed(0)
    return nn.Sequential(*(nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(LAYERS)))


def peak(_: int, kind: str) -> float:
    """Return the peak over some steps, in bytes, less what the process had before the model."""
    x = torch.randn(4, WIDTH)
    small = nn.Linear(4, 4)  # what torch loads at first use
    small(torch.ones(4)).sum().backward()
    torch.optim.AdamW(small.parameters(), fused=True).step()
    before = memory("self", "VmRSS")
    model = net()
    if kind in (DDP, VIEWS):
        model = DistributedDataParallel(model, gradient_as_bucket_view=kind == VIEWS)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    strategy = KINDS[kind][0] if kind in KINDS else None
    sync = thinwire.attach(model, optimizer, strategy) if strategy is not None else None
    for step in range(10):
        if step == 4:
            forget_peak()
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()
    most = memory("self", "VmHWM") - before
    if sync is not None:
        sync.close()
    dist.barrier()
    return most


def table_of_memory() -> tuple[list[tuple[Any, ...]], dict[str, Any]]:
    """Return rows for a table, and the figures."""
    count = LAYERS * WIDTH * WIDTH
    plain = run_ranks(2, peak, PLAIN)
    rows: list[tuple[Any, ...]] = [(PLAIN, plain / count, 16.0, "")]
    results: dict[str, Any] = {"parameters": count, PLAIN: round(plain / count, 2)}
    for kind, (_, formula, what) in KINDS.items():
        found = (run_ranks(2, peak, kind) - plain) / count
        rows.append((kind, found, formula, what))
        results[kind] = {"measured": round(found, 2), "formula": round(formula, 2), "of": what}
    return rows, results


def large(_: int, count: int, dtype: torch.dtype) -> dict[str, float]:
    """Attach a model of this many parameters, made on the meta device and filled with zeros."""
    width = 4096
    with torch.device("meta"):
        layers = [
            nn.Linear(width, width, bias=False, dtype=dtype) for _ in range(count // width**2)
        ]
    model = nn.Sequential(*layers).to_empty(device="cpu")
    with torch.no_grad():
        for param in model.parameters():
            param.zero_()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
    forget_peak()
    before = memory("self", "VmRSS")
    begun = time.perf_counter()
    sync = thinwire.attach(model, optimizer, Strategy())
    attached = time.perf_counter() - begun
    most = memory("self", "VmHWM") - before
    begun = time.perf_counter()
    sync.check()
    checked = time.perf_counter() - begun
    sync.close()
    numel = sum(param.numel() for param in model.parameters())
    return {
        "parameters": numel,
        "attach_s": round(attached, 2),
        "attach_bytes_a_parameter": round(most / numel, 2),
        "check_s": round(checked, 2),
    }


def attach_of_large() -> tuple[list[tuple[Any, ...]], dict[str, Any]]:
    """Return rows for a table, and the figures."""
    rows, results = [], {}
    for name, world, count, dtype in (
        ("300 M, fp32, two ranks", 2, 300_000_000, torch.float32),
        ("300 M, fp32, one rank", 1, 300_000_000, torch.float32),
        ("1 B, bf16, one rank", 1, 1_000_000_000, torch.bfloat16),
    ):
        found = run_ranks(world, large, count, dtype)
        rows.append((name, *found.values()))
        results[name] = found
    return rows, results
