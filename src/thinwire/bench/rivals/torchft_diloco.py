"""torchft's DiLoCo. Settings: `period`, `lr` and `momentum` (0.9) outside, `fragments`; Streaming
DiLoCo's `delay` (0) and `alpha` (0).

Every rank is a replica group of its own, as torchft's trainers have it; rank 0 also runs their
lighthouse. Chosen:

- outer optimiser: SGD with Nesterov momentum, one for each fragment, as torchft's own trainer;
  `use_async_quorum=False`, which DiLoCo insists on.
- `init_sync=False`: the manager's documentation asks for it where all ranks start from the same
  seed.
- one bucket for each fragment: faster than one all-reduce for each tensor, but torchft 0.2.0's
  bucketised path leaves tensors out, without an error, where a fragment is larger than
  `bucket_cap_mb`. So the cap is set to the largest fragment, rounded up.
- no `should_quantize`: without Triton's kernels and a GPU it sends full precision, and does not say
  so.
- a fragment is synchronised every `period` steps, one of them every period / fragments steps;
  torchft demands that it divides evenly.

`common` shows the global weights, which a fragment keeps as `original_parameters`: what torchft
checkpoints. Training goes on from its own.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any
from urllib.parse import urlsplit

import torch
from torch import nn
from torch._C._distributed_c10d import TCPStore

from thinwire import env
from thinwire.bench.job import Job, RankEnv
from thinwire.bench.loop import Loop
from thinwire.bench.rivals._meeting import own_address, rendezvous_store
from thinwire.models.gpt import GPT

ABOUT = "torchft's DiLoCo on gloo, each rank a replica group"
REQUIRES: tuple[str, ...] = (
    "torchft==0.2.0 opentelemetry-api==1.42.1 opentelemetry-sdk==1.42.1 "
    "opentelemetry-exporter-otlp-proto-http==1.42.1",
)


class DiLoCoSteps(Loop):
    """A manager, a lighthouse somewhere, and an optimiser with DiLoCo's hooks."""

    def __init__(self, job: Job, rank_env: RankEnv) -> None:
        self.net = job.new_model()
        self.optimizer = job.new_optimizer(self.net)
        fragments, momentum = (
            fragments_of(self.net, job.settings["fragments"]),
            job.settings.get("momentum", 0.9),
        )
        # Else every quorum writes a page.
        env.put_default("RUST_LOG", "warn")
        from torchft import Manager, ProcessGroupGloo  # type: ignore[import-not-found, unused-ignore]
        from torchft.coordination import LighthouseServer  # type: ignore[import-not-found, unused-ignore]
        from torchft.local_sgd import DiLoCo  # type: ignore[import-not-found, unused-ignore]

        # 1. The lighthouse on rank 0, and its address for all.
        within, own = timedelta(seconds=job.timeout), own_address(rank_env)
        self.rendezvous_store, self.lighthouse = rendezvous_store(rank_env, job.timeout), None
        if rank_env.rank == 0:
            self.lighthouse = LighthouseServer(
                bind=f"{rank_env.address}:0", min_replicas=rank_env.world
            )
            # Its own idea of its address is the host's name, which other hosts need not know.
            self.rendezvous_store.set(
                "lighthouse",
                f"http://{rank_env.address}:{urlsplit(self.lighthouse.address()).port}",
            )
        # 2. A manager a rank, each a replica group of its own.
        self.store = TCPStore(own, 0, is_master=True, wait_for_workers=False, timeout=within)
        self.manager = Manager(
            pg=ProcessGroupGloo(timeout=within),
            load_state_dict=None,
            state_dict=None,
            min_replica_size=rank_env.world,
            use_async_quorum=False,
            timeout=within,
            quorum_timeout=within,
            connect_timeout=within,
            rank=0,
            world_size=1,
            store_addr=own,
            store_port=self.store.port,
            lighthouse_addr=self.rendezvous_store.get("lighthouse").decode(),
            replica_id=f"rank_{rank_env.rank}",
            hostname=own,
            init_sync=False,
        )
        # 3. DiLoCo over the fragments, one outer SGD for each, a bucket as large as a fragment.
        self.diloco = DiLoCo(
            self.manager,
            fragments,
            self.optimizer,
            [
                torch.optim.SGD(
                    part.parameters(),
                    lr=job.settings["lr"],
                    momentum=momentum,
                    nesterov=momentum > 0,
                )
                for part in fragments
            ],
            sync_every=job.settings["period"],
            use_bucketization=True,
            bucket_cap_mb=max(
                math.ceil(sum(param.nbytes for param in part.parameters()) / 2**20)
                for part in fragments
            ),
            fragment_sync_delay=job.settings.get("delay", 0),
            fragment_update_alpha=job.settings.get("alpha", 0.0),
        )
        self.diloco.__enter__()
        self.clip = job.clip

    @contextmanager
    def common(self) -> Iterator[nn.Module]:
        """See `Trainer`."""
        # Common weights are the originals of the last average; each rank's own come back in the
        # end.
        pairs = [
            (param.data, fragment.original_parameters[name])
            for fragment in self.diloco._fragments
            for name, param in fragment._model_fragment.named_parameters()
        ]
        own = [param.clone() for param, _ in pairs]
        for param, original in pairs:
            param.copy_(original)
        try:
            yield self.net
        finally:
            for (param, _), mine in zip(pairs, own, strict=True):
                param.copy_(mine)

    def close(self) -> None:
        """See `Trainer`."""
        self.diloco.__exit__(None, None, None)
        self.manager.shutdown(wait=False)
        self.manager._pg.shutdown()
        if self.lighthouse is not None:
            self.lighthouse.shutdown()


def fragments_of(model: GPT, count: int) -> list[nn.Module]:
    """Return the model in `count` runs of layers, of like sizes; what it shares, such as a tied
    head, is in the first that holds it."""
    if count == 1:
        return [model]
    head = [] if model.config.tie else [model.head]
    layers: list[nn.Module] = [
        nn.ModuleList([model.embed, model.positions]),
        *model.blocks,
        nn.ModuleList([model.norm, *head]),
    ]
    if not 1 <= count <= len(model.blocks):
        raise ValueError(
            f"fragments={count}: this model has {len(model.blocks)} blocks; take 1 to that many"
        )
    # A layer goes to the fragment in which its middle lies.
    sizes = [sum(param.numel() for param in layer.parameters()) for layer in layers]
    runs: list[list[nn.Module]] = [[] for _ in range(count)]
    gone = 0
    for layer, size in zip(layers, sizes, strict=True):
        runs[min(count - 1, (gone + size // 2) * count // sum(sizes))].append(layer)
        gone += size
    if not all(runs):
        raise ValueError(
            f"fragments={count}: one layer of this model is larger than a fragment would be; take "
            "fewer"
        )
    return [nn.ModuleList(run) for run in runs]


def build(job: Job, rank_env: RankEnv) -> Any:
    """See `thinwire.bench.job`."""
    return DiLoCoSteps(job, rank_env)
