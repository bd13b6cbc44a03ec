"""Run DeepSpeed's ZeRO on CPU and gloo, in fp32. Settings: `stage`: 1, 2 or 3.

Chosen: DeepSpeed's configuration with its own gradient clipping and the client's optimiser (torch's
AdamW, which its list of optimisers for ZeRO has). `overlap_comm` stays as DeepSpeed sets it for the
stage. The shared-memory all-reduce that DeepSpeed builds for CPUs serves inference only; it is
compiled here with the package, once, instead of in every rank's first call.

ZeRO talks every step: it saves memory, not bytes. `common` gathers a plain model on all ranks
alike.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from thinwire import env
from thinwire.bench.job import Job, RankEnv

ABOUT = "DeepSpeed ZeRO"
REQUIRES: tuple[str, ...] = (
    "setuptools==80.9.0 wheel==0.45.1 ninja==1.13.0",
    "einops==0.8.2 hjson==3.1.0 msgpack==1.1.2 psutil==7.2.2 py-cpuinfo==9.0.0",
    "--no-build-isolation --no-cache-dir deepspeed==0.19.8",
)
BUILD_ENV: dict[str, str] = {"DS_ACCELERATOR": "cpu", "DS_BUILD_SHM_COMM": "1"}


class Zero:
    """The loop of DeepSpeed's tutorial."""

    def __init__(self, job: Job, rank_env: RankEnv) -> None:
        self.stage = job.settings["stage"]
        if self.stage not in (1, 2, 3):
            raise ValueError(f"no stage {self.stage!r}: 1, 2, 3")
        # Must be set before the import.
        env.put("DS_ACCELERATOR", "cpu")
        import deepspeed  # type: ignore[import-not-found, unused-ignore]

        self.deepspeed, self.job = deepspeed, job
        deepspeed.init_distributed("gloo", timeout=timedelta(seconds=job.timeout), verbose=False)
        model = job.new_model()
        self.engine, self.optimizer, _, _ = deepspeed.initialize(
            model=model,
            optimizer=job.new_optimizer(model),
            config={
                "train_micro_batch_size_per_gpu": job.batch,
                "train_batch_size": job.batch * rank_env.world,
                "gradient_clipping": job.clip,
                "zero_optimization": {"stage": self.stage},
                "steps_per_print": 10**9,
            },
        )

    def step(self, tokens: Tensor, targets: Tensor, lr: float) -> float:
        """See `Trainer`."""
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        _, loss = self.engine(tokens, targets)
        self.engine.backward(loss)
        self.engine.step()
        return float(loss.detach())

    @contextmanager
    def common(self) -> Iterator[nn.Module]:
        """See `Trainer`."""
        if self.stage < 3:
            yield self.engine.module
            return
        whole = self.job.new_model()
        shards = list(self.engine.module.parameters())
        with self.deepspeed.zero.GatheredParameters(shards), torch.no_grad():
            for param, shard in zip(whole.parameters(), shards, strict=True):
                param.copy_(shard)
        yield whole

    def split(self) -> dict[str, float]:
        """See `Trainer`."""
        return {}

    def close(self) -> None:
        """See `Trainer`."""
        self.engine.destroy()
        dist.destroy_process_group()


def build(job: Job, rank_env: RankEnv) -> Any:
    """See `thinwire.bench.job`."""
    return Zero(job, rank_env)
