"""Run Hugging Face accelerate's LocalSGD. Settings: `period`: local steps between averages.

Chosen: the loop of accelerate's guide to local SGD, on CPU and gloo. There is nothing else to set:
`LocalSGD` waits for all ranks, then averages the weights tensor by tensor, one all-reduce after
another, in full precision.

`common` averages a copy of the weights with `Accelerator.reduce`, as `LocalSGD` itself does on
leaving its context; training goes on from its own weights. That talk is the rival's too.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch.distributed as dist
from torch import Tensor, nn

from thinwire.bench.job import Job, RankEnv
from thinwire.bench.loop import Loop

ABOUT = "Hugging Face accelerate's LocalSGD"
REQUIRES: tuple[str, ...] = ("accelerate==1.15.0 psutil==7.2.2",)


class LocalSteps(Loop):
    """The loop of accelerate's guide."""

    def __init__(self, job: Job) -> None:
        period = job.settings["period"]
        if period < 1:
            raise ValueError(f"period={period}: a period is 1 or more")
        from accelerate import Accelerator
        from accelerate.local_sgd import LocalSGD
        from accelerate.utils import InitProcessGroupKwargs

        within = InitProcessGroupKwargs(backend="gloo", timeout=timedelta(seconds=job.timeout))
        self.accelerator = Accelerator(cpu=True, kwargs_handlers=[within])
        model = job.new_model()
        self.net, self.optimizer = self.accelerator.prepare(model, job.new_optimizer(model))
        self.local = LocalSGD(accelerator=self.accelerator, model=self.net, local_sgd_steps=period)
        # A context that stays open for the whole run, as the guide's `with` does.
        self.local.__enter__()
        self.clip = job.clip

    def backward(self, loss: Tensor) -> None:
        """See `Loop`."""
        self.accelerator.backward(loss)

    def update(self) -> None:
        """See `Loop`."""
        self.accelerator.clip_grad_norm_(self.net.parameters(), self.clip)
        self.optimizer.step()
        self.local.step()

    @contextmanager
    def common(self) -> Iterator[nn.Module]:
        """See `Trainer`."""
        averaged: nn.Module = copy.deepcopy(self.accelerator.unwrap_model(self.net))
        for param in averaged.parameters():
            param.data = self.accelerator.reduce(param.data, reduction="mean")
        yield averaged

    def close(self) -> None:
        """See `Trainer`."""
        self.local.__exit__(
            None, None, None
        )  # which averages the weights, as after a user's `with`
        self.accelerator.end_training()
        if dist.is_initialized():
            dist.destroy_process_group()


def build(job: Job, rank_env: RankEnv) -> Any:  # noqa: ARG001  (every contestant takes both)
    """See `thinwire.bench.job`."""
    return LocalSteps(job)
