"""Records of benches, and a reader of the pages that are made of them."""

from __future__ import annotations

import math
import random
from html.parser import HTMLParser
from typing import Any

from thinwire.bench.report import summary

Record = dict[str, Any]


VOID = {"meta", "br", "hr", "img", "input", "link"}


LINKS: list[Record] = [
    {"name": "1 Gb/s, 1 ms", "rate": 1e9, "rtt": 0.001, "loss": 0.0, "congestion": "cubic"},
    {"name": "100 Mb/s, 50 ms", "rate": 1e8, "rtt": 0.05, "loss": 0.0, "congestion": "cubic"},
    {
        "name": "20 Mb/s, 150 ms, 1 % lost",
        "rate": 2e7,
        "rtt": 0.15,
        "loss": 0.01,
        "congestion": "bbr",
    },
]


ENVIRONMENT: Record = {
    "kind": "environment",
    "thinwire": "0.1.0",
    "torch": "2.9.1",
    "python": "3.11.9",
    "cpu": "AMD EPYC 7B13",
    "cores": 2,
    "kernel": "6.1.0-37-amd64",
    "date": "2026-11-25",
    "command": "thinwire bench --links all --seeds 3 --out bench.jsonl",
}


# name, contestant, settings, share of dense bytes, how much the loss lags, compute seconds, seeds,
# whether it tells its parts apart
CONTESTANTS: list[tuple[str, str, Record, float, float, float, int, bool]] = [
    ("DDP fp32", "ddp", {"hook": "none"}, 1.0, 0.0, 0.11, 3, False),
    ("DDP fp16", "ddp", {"hook": "fp16"}, 0.5, 0.001, 0.113, 3, False),
    (
        "DDP PowerSGD r=4",
        "ddp",
        {"hook": "powersgd", "rank": 4, "start": 100},
        0.06,
        0.05,
        0.13,
        1,
        False,
    ),
    (
        "DiLoCo H=30, 4 bits",
        "thinwire",
        {"strategy": "[what]\nname = 'uniform'\nbits = 4\n"},
        0.0042,
        0.03,
        0.112,
        3,
        True,
    ),
    (
        "every step, 8 bits",
        "thinwire",
        {"strategy": "what = 'uniform 8'"},
        0.25,
        0.002,
        0.12,
        3,
        True,
    ),
    (
        "top 1 %, error feedback",
        "thinwire",
        {"strategy": "what = 'topk'", "attach": {"warm": 50}},
        0.02,
        0.04,
        0.128,
        3,
        True,
    ),
    ("hivemind-like averaging", "averaging", {"every": 50}, 0.02, 0.12, 0.125, 1, False),
    ("OpenDiLoCo H=50", "opendiloco", {"period": 50}, 0.02, 0.045, 0.115, 3, False),
    (
        "too coarse: never there",
        "thinwire",
        {"strategy": "what = 'uniform 2'"},
        0.06,
        0.9,
        0.115,
        1,
        True,
    ),
]


def plausible(parameters: int = 12_300_000, steps: int = 2400, timed: int = 60) -> list[Record]:
    """A bench as it may come out: three links, nine contestants, two that fail."""
    draw = random.Random(7)
    out: list[Record] = [ENVIRONMENT]
    world, tokens = 4, 4096
    dense = 4 * parameters * 2 * (world - 1) / world
    for name, contestant, settings, share, lag, compute, seeds, splits in CONTESTANTS:
        same = {
            "name": name,
            "contestant": contestant,
            "settings": settings,
            "parameters": parameters,
            "error": None,
        }
        for seed in range(seeds):
            wobble = draw.gauss(0, 0.006)
            told = [
                (at, 2.9 + lag + wobble + 7 * math.exp(-((at / 90) ** 0.5)) + draw.gauss(0, 0.004))
                for at in range(60, steps + 1, 60)
            ]
            curve = {
                "kind": "curve",
                "seed": seed,
                "tokens_per_step": tokens,
                "steps": steps,
                "validation": told,
            }
            out.append(same | curve | {"bytes_per_step": dense * share})
        for link in LINKS:
            for round_ in range(2):
                wire = share * dense * 8 / link["rate"] * (1 + 20 * link["loss"]) + (
                    6 * link["rtt"] if share > 0.01 else 0
                )
                step_s = [
                    compute * draw.uniform(0.96, 1.1) + wire * draw.uniform(0.9, 1.2)
                    for _ in range(timed)
                ]
                mean = sum(step_s) / timed
                known = {
                    "encode_s": 0.006,
                    "exposed_s": mean - compute - 0.008,
                    "input_s": 0.002,
                    "compute_s": compute,
                }
                parts = known if splits else dict.fromkeys(known) | {"input_s": 0.002}
                out.append(
                    same
                    | {
                        "kind": "time",
                        "link": link,
                        "world": world,
                        "round": round_,
                        "step_s": step_s,
                        **parts,
                        "tokens_per_s": tokens / mean,
                    }
                    | {
                        "metered_bytes": share * dense if splits else None,
                        "kernel_bytes": share * dense * 1.04,
                        "peak_bytes": 6.1e8 + share * 1e8,
                    }
                    | {"max_late_ms": draw.uniform(0.1, 2)}
                )
    broken = {
        "name": "SparseLoCo",
        "contestant": "sparseloco",
        "settings": {"k": 64},
        "parameters": None,
    }
    out.append(
        broken
        | {
            "kind": "curve",
            "seed": 0,
            "validation": [],
            "error": "ImportError: no module named 'sparseloco_kernels'",
        }
    )
    out.append(
        broken
        | {
            "kind": "time",
            "link": LINKS[1],
            "step_s": [],
            "error": "rank 2 was killed: out of memory (4.1 GB asked, 3.8 GB free)",
        }
    )
    for link in LINKS[1:]:
        row = next(
            r
            for r in summary(out)
            if r["link"] == link["name"] and r["name"] == "DiLoCo H=30, 4 bits"
        )
        points = [
            (at, at * row["step_mean_s"] * 1.03, 2.93 + 7 * math.exp(-((at / 90) ** 0.5)))
            for at in range(120, 1900, 120)
        ]
        whole = {
            "kind": "whole",
            "name": row["name"],
            "link": link,
            "seed": 0,
            "points": points,
            "target": row["target_nats"],
        }
        out.append(
            whole
            | {"predicted_s": row["time_to_target_s"], "measured_s": row["time_to_target_s"] * 1.03}
        )
    return out


def a_curve(
    name: str, losses: list[float], contestant: str = "thinwire", seed: int = 0, **more: Any
) -> Record:
    """Validated every 10 steps from the 10th."""
    told = [[10 * at, nats] for at, nats in enumerate(losses, start=1)]
    same = {
        "kind": "curve",
        "name": name,
        "contestant": contestant,
        "settings": {},
        "seed": seed,
        "parameters": 1000,
        "validation": told,
    }
    return (
        same
        | {"tokens_per_step": 64, "steps": 10 * len(losses), "bytes_per_step": None, "error": None}
        | more
    )


def a_time(
    name: str, step_s: list[float], contestant: str = "thinwire", link: str = "slow", **more: Any
) -> Record:
    same: Record = {
        "kind": "time",
        "name": name,
        "contestant": contestant,
        "settings": {},
        "link": {"name": link, "rate": 1e6, "rtt": 0.1},
    }
    same |= {
        "parameters": 1000,
        "world": 4,
        "round": 0,
        "step_s": step_s,
        "metered_bytes": None,
        "kernel_bytes": 6000.0,
    }
    return (
        same
        | {
            "tokens_per_s": 64 / (sum(step_s) / len(step_s)) if step_s else None,
            "peak_bytes": 1e8,
            "error": None,
        }
        | more
    )


TINY = [
    a_curve("dense", [5.0, 4.0, 3.0, 2.0, 1.0], "ddp"),
    a_time("dense", [2.0, 2.0], "ddp"),
    a_curve("ours", [5.0, 4.0, 2.0, 2.0, 1.5]),
    a_curve("ours", [5.0, 4.2, 3.0, 2.0, 1.7], seed=1),
    a_time("ours", [1.0], kernel_bytes=600.0),
    a_time("ours", [0.2, 0.2, 0.2], kernel_bytes=400.0, round=1),
]


class Balanced(HTMLParser):
    """What is in a page, and whether every tag that opens is closed, in order."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len({key for key, _ in attrs}) == len(attrs), (
            f"<{tag}> says an attribute twice: {attrs}"
        )
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> closes another one"

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("script", "style"):
            self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attrs for each, attrs in self.tags if each == tag]
