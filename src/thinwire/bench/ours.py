"""Thinwire itself. Settings: `strategy`, its TOML; `attach`, keyword arguments of
`thinwire.attach`."""

from __future__ import annotations

from contextlib import AbstractContextManager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from thinwire.bench.job import Job, RankEnv
from thinwire.bench.loop import Loop
from thinwire.engine import attach
from thinwire.strategy import Strategy

ABOUT = "thinwire.attach"
REQUIRES: tuple[str, ...] = ()


class Ours(Loop):
    """A loop of two more lines."""

    def __init__(self, job: Job, rank_env: RankEnv) -> None:
        timeout = timedelta(seconds=job.timeout)
        dist.init_process_group("gloo", timeout=timeout)
        self.net = job.new_model()
        self.optimizer = job.new_optimizer(self.net)
        strategy = Strategy.from_toml(job.settings["strategy"])
        self.sync = attach(
            self.net, self.optimizer, strategy, timeout=timeout, **job.settings.get("attach", {})
        )
        self.clip = job.clip

    def common(self) -> AbstractContextManager[nn.Module]:
        """See `Trainer`."""
        return self.sync.common_weights()

    def split(self) -> dict[str, float]:
        """See `Trainer`."""
        report = self.sync.report()
        return {
            "encode_s": sum(row.encode_s for row in report.rows),
            "exposed_s": sum(row.exposed_s for row in report.rows),
            "metered_bytes": float(report.sent_bytes),
        }

    def close(self) -> None:
        """See `Trainer`."""
        self.sync.close()
        dist.destroy_process_group()


def build(job: Job, rank_env: RankEnv) -> Any:
    """See `thinwire.bench.job`."""
    torch.manual_seed(job.seed)
    return Ours(job, rank_env)
