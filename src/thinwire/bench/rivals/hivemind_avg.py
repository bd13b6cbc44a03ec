"""hivemind's decentralised averaging of weights. Settings: `period`: local steps between averages;
`compression`: none, float16 or 8bit.

Chosen: `DecentralizedAverager` over a hivemind DHT, called by all ranks after every `period` steps,
in the foreground. `hivemind.Optimizer` with `use_local_updates=True` does the same averaging, but
decides by clock and estimated sample counts after which step, so that two runs are not the same
run; this averager is what it stands on. `target_group_size` is the world, so a group starts as soon
as all are in it, and `min_group_size` too: an average of fewer is an error here. `bandwidth` is
given, the same for all, so that each reduces an even share. Each rank's round is scheduled a second
after the rank's before it: the earliest leads, so that two do not follow each other, upon which
hivemind 1.1.12 can lose one of four. For the same reason each rank greets all before it when it
starts: two that first dial each other in the same all-reduce can both fail, and it then waits for
`allreduce_timeout`. The DHT listens on this host's own address only; relays, NAT mapping and
reachability probes, which look for other hosts, are off.

hivemind 1.1.12 with NumPy 2.4 reports success without having averaged in its 8-bit codecs, so an
older NumPy is pinned, and a round that changed no weight although others had other weights is an
error.

A peer that fails inside a round leaves its part of the weights out of it: hivemind then warns
"received N% results" on standard error and goes on, as it is meant to, with ranks that differ by
more than the codec's error.

`common` shows the last average, which the averager holds. With a lossy `compression` ranks hold it
up to the codec's error.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from thinwire.bench.job import Job, RankEnv
from thinwire.bench.loop import Loop
from thinwire.bench.rivals._meeting import own_address, rendezvous_store

ABOUT = "hivemind DecentralizedAverager over its DHT"
REQUIRES: tuple[str, ...] = (
    "hivemind==1.1.12 numpy==1.26.4 scipy==1.15.3 configargparse==1.9.0 base58==2.1.1 "
    "blake3==1.0.11 cryptography==50.0.2 "
    "grpcio-tools==1.85.1 mmh3==5.3.1 morphys==1.0 msgpack==1.2.4 netaddr==1.3.0 "
    "prefetch_generator==1.0.3 py-cid==0.5.0 "
    "py-multibase==2.0.0 py-multicodec==1.0.0 py-multihash==3.0.0 python-baseconv==1.2.2 "
    "six==1.17.0 uvloop==0.23.0 varint==1.0.2",
)
MATCHMAKING_S = 5.0  # hivemind's default: a round that is not full waits so long
CODECS = {
    "none": "NoCompression",
    "float16": "Float16Compression",
    "8bit": "Uniform8BitQuantization",
}


class Averaged(Loop):
    """Local steps, and an averager that all ranks call together."""

    def __init__(self, job: Job, rank_env: RankEnv) -> None:
        self.period, codec = job.settings["period"], job.settings.get("compression", "none")
        if self.period < 1:
            raise ValueError(f"period={self.period}: a period is 1 or more")
        if codec not in CODECS:
            raise ValueError(f"no compression {codec!r}: {', '.join(CODECS)}")
        import hivemind  # type: ignore[import-not-found, unused-ignore]
        from hivemind import compression  # type: ignore[import-not-found, unused-ignore]
        from hivemind.utils import get_dht_time  # type: ignore[import-not-found, unused-ignore]

        self.store, self.world, self.timeout, self.steps = (
            rendezvous_store(rank_env, job.timeout),
            rank_env.world,
            job.timeout,
            0,
        )
        self.rank, self.time = rank_env.rank, get_dht_time
        # Each rank knows the addresses of those before it: no rank has to be found from outside.
        before = [
            each
            for rank in range(rank_env.rank)
            for each in self.store.get(f"peer/{rank}").decode().split()
        ]
        self.dht = hivemind.DHT(
            initial_peers=before or None,
            host_maddrs=[f"/ip4/{own_address(rank_env)}/tcp/0"],
            start=True,
            auto_nat=False,
            nat_port_map=False,
            use_relay=False,
            force_reachability="public",
        )
        self.store.set(f"peer/{rank_env.rank}", " ".join(map(str, self.dht.get_visible_maddrs())))
        # The averager has copies; weights go in and out at each average.
        self.net = job.new_model()
        self.optimizer = job.new_optimizer(self.net)
        self.params = list(self.net.parameters())
        self.averager = hivemind.DecentralizedAverager(
            [param.detach().clone() for param in self.params],
            self.dht,
            start=True,
            prefix="bench",
            target_group_size=rank_env.world,
            min_group_size=rank_env.world,
            compression=getattr(compression, CODECS[codec])(),
            min_matchmaking_time=MATCHMAKING_S,
            bandwidth=1.0,
            allreduce_timeout=job.timeout,
        )
        self.clip = job.clip

    def update(self) -> None:
        """See `Loop`; and at the end of a period an average."""
        super().update()
        self.steps += 1
        if self.steps % self.period == 0:
            self._average()

    @torch.no_grad()
    def _average(self) -> None:
        """One round: into the averager, around, and back."""
        # 1. The weights of now. 2. Around: all ranks, or an error. 3. Back, if anything has
        # changed.
        with self.averager.get_tensors() as held:
            for mine, param in zip(held, self.params, strict=True):
                mine.copy_(param)
        sums = self.averager.step(
            gather=float(self.params[0].double().sum()),
            scheduled_time=self.time() + MATCHMAKING_S + self.rank,
            timeout=self.timeout + self.rank,
        )
        if sums is None or len(sums) != self.world:
            raise RuntimeError(f"hivemind averaged {sums and len(sums)} of {self.world} ranks")
        with self.averager.get_tensors() as held:
            # With different sums on ranks an average must change some weight.
            if len(set(sums.values())) > 1 and all(
                torch.equal(mine, param) for mine, param in zip(held, self.params, strict=True)
            ):
                raise RuntimeError("hivemind reported an average, but no weight has changed")
            for mine, param in zip(held, self.params, strict=True):
                param.copy_(mine)

    @contextmanager
    def common(self) -> Iterator[nn.Module]:
        """See `Trainer`."""
        own = [param.detach().clone() for param in self.params]
        with torch.no_grad(), self.averager.get_tensors() as held:
            for param, average in zip(self.params, held, strict=True):
                param.copy_(average)
        try:
            yield self.net
        finally:
            with torch.no_grad():
                for param, mine in zip(self.params, own, strict=True):
                    param.copy_(mine)

    def close(self) -> None:
        """See `Trainer`."""
        self.averager.shutdown()
        self.dht.shutdown()


def build(job: Job, rank_env: RankEnv) -> Any:
    """See `thinwire.bench.job`."""
    return Averaged(job, rank_env)
