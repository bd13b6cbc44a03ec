"""Real ranks for tests: processes forked from a server that has torch loaded, joined by gloo on
loopback."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import signal
import traceback
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from typing import Any

import torch
import torch.distributed as dist

PRELOAD = [
    "torch",
    "torch.distributed",
    "thinwire.engine",
    "torch.distributed.checkpoint",
    "tests.preload",
]
context = multiprocessing.get_context("forkserver")
# A process has one fork server: whoever sets another list makes every rank import all this anew.
context.set_forkserver_preload(PRELOAD)


class RankFailedError(AssertionError):
    """A rank raised; its traceback is the message."""


def run_ranks(
    world: int, work: Callable[..., Any], *args: Any, timeout: float = 120, host: str = "parent"
) -> list[Any]:
    """`work(rank, *args)` on `world` ranks of one gloo group; their results, by rank.

    Args:
        host: who holds the store: "parent", or "rank0" as without a launcher. A rank that dies by a
            signal has the result `-signal`.
    """
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    pipes, processes = [], []
    for rank in range(world):
        here, there = context.Pipe()
        process = context.Process(
            target=_rank, args=(rank, world, store.port, host, there, work, args), daemon=True
        )
        process.start()
        there.close()
        pipes.append(here)
        processes.append(process)
    try:
        results: list[Any] = [None] * world
        open_pipes = dict(zip(pipes, range(world), strict=True))
        while open_pipes:
            ready = wait(list(open_pipes), timeout=timeout)
            if not ready:
                raise RankFailedError(
                    f"ranks {sorted(open_pipes.values())} did not finish within {timeout} s"
                )
            for pipe in ready:
                assert isinstance(pipe, Connection)
                rank = open_pipes.pop(pipe)
                results[rank] = _result(pipe, processes[rank], rank)
        return results
    finally:
        for process in processes:
            if process.is_alive() and process.pid is not None:
                process.join(5)
                if process.is_alive():
                    os.kill(process.pid, signal.SIGKILL)
            process.join()


def _result(pipe: Connection, process: Any, rank: int) -> Any:
    try:
        kind, value = pickle.loads(
            pipe.recv_bytes()
        )  # the pipe's own would share tensors through a process that ends
    except EOFError:
        process.join(10)
        if process.exitcode is not None and process.exitcode < 0:
            return process.exitcode
        raise RankFailedError(
            f"rank {rank} ended with exit code {process.exitcode} and said nothing"
        ) from None
    if kind == "raised":
        raise RankFailedError(f"rank {rank}:\n{value}")
    return value


def _rank(
    rank: int,
    world: int,
    port: int,
    host: str,
    pipe: Connection,
    work: Callable[..., Any],
    args: tuple[Any, ...],
) -> None:
    torch.set_num_threads(1)
    try:
        if host == "parent":
            store = dist.TCPStore("127.0.0.1", port, is_master=False)
        else:  # the parent's store only tells where rank 0's is
            meet = dist.TCPStore("127.0.0.1", port, is_master=False)
            if rank == 0:
                store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
                meet.set("port", str(store.port))
            else:
                store = dist.TCPStore("127.0.0.1", int(meet.get("port")), is_master=False)
        dist.init_process_group(
            "gloo", store=store, rank=rank, world_size=world, timeout=timedelta(seconds=60)
        )
        pipe.send_bytes(pickle.dumps(("done", work(rank, *args))))
        dist.barrier()
        dist.destroy_process_group()
    except BaseException:
        with contextlib.suppress(BrokenPipeError):
            pipe.send_bytes(pickle.dumps(("raised", traceback.format_exc())))
        os._exit(1)
    pipe.close()
