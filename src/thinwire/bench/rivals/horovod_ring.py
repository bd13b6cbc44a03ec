"""Run Horovod's ring all-reduce over gloo. Settings: `compression`: none or fp16.

Chosen: `DistributedOptimizer`, which sends gradients while the backward pass runs, with Horovod's
own fusion (128 MB) and cycle (1 ms). Clipping follows Horovod's documentation: `synchronize()`,
clip, then `step()` inside `skip_synchronize()`. `horovodrun` wants ssh; this does what it does
after that: rank 0 runs the rendezvous server, and each rank gets its slot by environment variables,
as a host of its own.

Horovod 0.28.1, the last, compiles as C++14, which torch's headers refuse since 2.1. Its sources are
left alone: CMake's launcher variable appends the newer standard to every compiler call. It needs
cmake and a C++ compiler, and about two minutes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from thinwire import env
from thinwire.bench.job import Job, RankEnv
from thinwire.bench.loop import Loop
from thinwire.bench.rivals._meeting import rendezvous_store

ABOUT = "Horovod DistributedOptimizer over gloo"
REQUIRES: tuple[str, ...] = (
    "setuptools==75.8.0 wheel==0.45.1 cffi==1.17.1 cloudpickle==3.1.2 psutil==7.2.2",
    "--no-build-isolation --no-deps --no-cache-dir horovod==0.28.1",
)
BUILD_ENV: dict[str, str] = {
    "HOROVOD_WITH_PYTORCH": "1",
    "HOROVOD_WITH_GLOO": "1",
    "HOROVOD_WITHOUT_MPI": "1",
    "HOROVOD_WITHOUT_TENSORFLOW": "1",
    "HOROVOD_WITHOUT_MXNET": "1",
    "MAKEFLAGS": "-j2",
    "CMAKE_CXX_COMPILER_LAUNCHER": 'sh;-c;exec "$@" -std=c++20;sh',
}


class Ring(Loop):
    """The loop of Horovod's PyTorch guide."""

    def __init__(self, job: Job, rank_env: RankEnv) -> None:
        compression = job.settings.get("compression", "none")
        if compression not in ("none", "fp16"):
            raise ValueError(f"no compression {compression!r}: none, fp16")
        import horovod.torch as hvd  # type: ignore[import-not-found, unused-ignore]
        from horovod.runner.common.util.hosts import (  # type: ignore[import-not-found, unused-ignore]
            get_host_assignments,
            parse_hosts,
        )
        from horovod.runner.gloo_run import create_slot_env_vars  # type: ignore[import-not-found, unused-ignore]
        from horovod.runner.http.http_server import RendezvousServer  # type: ignore[import-not-found, unused-ignore]

        self.hvd, self.rendezvous_store, self.server = (
            hvd,
            rendezvous_store(rank_env, job.timeout),
            None,
        )
        # One slot a rank: each rank is a host of its own to Horovod.
        slots = get_host_assignments(
            parse_hosts(",".join(f"rank{rank}:1" for rank in range(rank_env.world))), rank_env.world
        )
        # Rank 0 serves the rendezvous, as horovodrun would, and publishes its port in our own
        # store.
        if rank_env.rank == 0:
            self.server = RendezvousServer()
            port = self.server.start()
            self.server.init(slots)
            self.rendezvous_store.set("rendezvous", str(port))
        variables = create_slot_env_vars(slots[rank_env.rank]) | {
            "HOROVOD_CONTROLLER": "gloo",
            "HOROVOD_CPU_OPERATIONS": "gloo",
            "HOROVOD_GLOO_RENDEZVOUS_ADDR": rank_env.address,
            "HOROVOD_GLOO_RENDEZVOUS_PORT": self.rendezvous_store.get("rendezvous").decode(),
            "HOROVOD_GLOO_TIMEOUT_SECONDS": str(int(job.timeout)),
        }
        if env.is_set("GLOO_SOCKET_IFNAME"):
            variables["HOROVOD_GLOO_IFACE"] = env.text("GLOO_SOCKET_IFNAME")
        # Horovod reads its settings from the environment at init.
        for name, value in variables.items():
            env.put(name, value)
        hvd.init()
        self.net = job.new_model()
        hvd.broadcast_parameters(self.net.state_dict(), root_rank=0)
        self.optimizer = hvd.DistributedOptimizer(
            job.new_optimizer(self.net),
            named_parameters=self.net.named_parameters(),
            compression=getattr(hvd.Compression, compression),
        )
        self.clip = job.clip

    def update(self) -> None:
        """See `Loop`."""
        self.optimizer.synchronize()
        nn.utils.clip_grad_norm_(self.net.parameters(), self.clip)
        with self.optimizer.skip_synchronize():
            self.optimizer.step()

    @contextmanager
    def common(self) -> Iterator[nn.Module]:
        """See `Trainer`."""
        yield self.net

    def close(self) -> None:
        """See `Trainer`."""
        self.hvd.shutdown()
        if self.server is not None:
            self.server.stop()


def build(job: Job, rank_env: RankEnv) -> Any:
    """See `thinwire.bench.job`."""
    return Ring(job, rank_env)
