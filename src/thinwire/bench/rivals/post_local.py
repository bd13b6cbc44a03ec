"""Run torch's post-local SGD. Settings: `period`: local steps between averages; `start`: steps of
plain DDP before that.

Chosen: `post_local_gradient_allreduce=False` and subgroups of one rank, so that a local step sends
nothing (torch's default averages gradients within a host, and each of these hosts is one rank). The
averager is torch's flat `PeriodicModelAverager`, one all-reduce of all weights. It averages after
steps start, start + period, ...: the first time after a single local step.

`common` averages a copy of the weights, as a user does before keeping them; training goes on from
its own. That talk is the rival's too.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch.distributed as dist
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks.post_localSGD_hook import (
    PostLocalSGDState,
    post_localSGD_hook,
)
from torch.distributed.algorithms.model_averaging.averagers import PeriodicModelAverager
from torch.distributed.algorithms.model_averaging.utils import average_parameters
from torch.distributed.optim import PostLocalSGDOptimizer
from torch.nn.parallel import DistributedDataParallel

from thinwire.bench.job import Job, RankEnv
from thinwire.bench.loop import Loop

ABOUT = "torch post-local SGD: PostLocalSGDOptimizer over DistributedDataParallel"
REQUIRES: tuple[str, ...] = ()


class PostLocal(Loop):
    """The loop of PostLocalSGDOptimizer's documentation."""

    def __init__(self, job: Job) -> None:
        period, self.start = job.settings["period"], job.settings["start"]
        if period < 1 or self.start < 0:
            raise ValueError(
                f"period={period}, start={self.start}: a period is 1 or more, a start 0 or more"
            )
        dist.init_process_group("gloo", timeout=timedelta(seconds=job.timeout))
        self.net = DistributedDataParallel(job.new_model(), gradient_as_bucket_view=True)
        # A group of one: a local step's all-reduce sends nothing.
        alone, _ = dist.new_subgroups(group_size=1)
        state = PostLocalSGDState(None, alone, self.start, post_local_gradient_allreduce=False)
        self.net.register_comm_hook(state, post_localSGD_hook)
        self.averager = PeriodicModelAverager(period, warmup_steps=self.start)
        self.optimizer = PostLocalSGDOptimizer(job.new_optimizer(self.net), self.averager)
        self.clip = job.clip

    @contextmanager
    def common(self) -> Iterator[nn.Module]:
        """See `Trainer`."""
        averaged: nn.Module = copy.deepcopy(self.net.module)
        if self.averager.step > self.start:
            average_parameters(averaged.parameters(), self.averager.process_group)
        yield averaged

    def close(self) -> None:
        """See `Trainer`."""
        dist.destroy_process_group()


def build(job: Job, rank_env: RankEnv) -> Any:  # noqa: ARG001  (every contestant takes both)
    """See `thinwire.bench.job`."""
    return PostLocal(job)
