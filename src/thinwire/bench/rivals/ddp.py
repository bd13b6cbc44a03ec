"""Run torch's DistributedDataParallel. Settings: `hook`: none, fp16, or powersgd (with `rank`,
`start`); `bucket_mb`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch.distributed as dist
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks, powerSGD_hook
from torch.nn.parallel import DistributedDataParallel

from thinwire.bench.job import Job, RankEnv
from thinwire.bench.loop import Loop

ABOUT = "torch DistributedDataParallel, with its communication hooks"
REQUIRES: tuple[str, ...] = ()


class DDP(Loop):
    """The loop of torch's tutorial, with the hook asked for."""

    def __init__(self, job: Job) -> None:
        dist.init_process_group("gloo", timeout=timedelta(seconds=job.timeout))
        hook = job.settings.get("hook", "none")
        bucket_mb = job.settings.get("bucket_mb", 25)
        self.net = DistributedDataParallel(
            job.new_model(), gradient_as_bucket_view=True, bucket_cap_mb=bucket_mb
        )
        if hook == "fp16":
            self.net.register_comm_hook(None, default_hooks.fp16_compress_hook)
        # min_compression_rate=1 makes torch compress every matrix that gets smaller at all.
        elif hook == "powersgd":
            state = powerSGD_hook.PowerSGDState(
                None,
                matrix_approximation_rank=job.settings["rank"],
                start_powerSGD_iter=job.settings["start"],
                min_compression_rate=1,
            )
            self.net.register_comm_hook(state, powerSGD_hook.powerSGD_hook)
        elif hook != "none":
            raise ValueError(f"no hook {hook!r}: none, fp16, powersgd")
        self.optimizer = job.new_optimizer(self.net)
        self.clip = job.clip

    @contextmanager
    def common(self) -> Iterator[nn.Module]:
        """See `Trainer`."""
        yield self.net.module

    def close(self) -> None:
        """See `Trainer`."""
        dist.destroy_process_group()


def build(job: Job, rank_env: RankEnv) -> Any:  # noqa: ARG001  (every contestant takes both)
    """See `thinwire.bench.job`."""
    return DDP(job)
