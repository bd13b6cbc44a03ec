"""Move hops over any `torch.distributed` process group: all-reduces, and isend/irecv on bytes.

Each lane is a process group and a thread of its own. A lane runs its flights one after another to
completion, in the order in which every rank starts them, so equal-sized collectives cannot cross.
On CPUs lanes compute in turns, so that one's bytes leave while the next one
encodes: all at once, none would have any to send for as long as all take. On CUDA a lane has a side
stream; events order it against the caller's.
"""

from __future__ import annotations

import sys
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from thinwire.core import (
    AllReduce,
    Exchange,
    Flight,
    Hop,
    Ranks,
    Transport,
    allreduce_nbytes,
)
from thinwire.drive import interfaces
from thinwire.drive._lane import Lane, TorchHandle
from thinwire.drive.blame import Diagnosis, Hops
from thinwire.drive.descriptors import connecting, needed, refusal
from thinwire.drive.threads import thread_ids, thread_s
from thinwire.drive.watch import Watch
from thinwire.errors import AttachError, FlightError, LinkLostError, RankLostError, ThinwireError
from thinwire.kernels import memory
from thinwire.text.words import first_line

T = TypeVar("T")

GLOO_WINDOW = 2 << 20
"""Bytes that gloo's own all_reduce keeps in flight: two segments."""


class TorchDriver:
    """A driver of one rank of a process group.

    Args:
        group: the process group, or `None` for the default one; ranks are counted within it.
        lanes: flights that travel side by side; each lane has its own connections.
        timeout: the longest that a hop may take.
        device: where the flights' tensors live.
    """

    def __init__(self, group: Any, lanes: int, timeout: timedelta, device: torch.device) -> None:
        self.rank, self.world, self.lanes, self.timeout = (
            dist.get_rank(group),
            dist.get_world_size(group),
            lanes,
            timeout,
        )
        self._members = dist.get_process_group_ranks(
            group if group is not None else dist.group.WORLD
        )
        self.global_ranks: Ranks = (
            tuple(self._members) if len(self._members) < dist.get_world_size() else ()
        )
        self._backend = dist.get_backend(group)
        self.device = device
        # gloo carries from the host's memory alone, so that ranks may differ in device
        self._wire = (
            torch.device("cpu") if device.type == "cuda" and self._backend == "gloo" else device
        )
        self._explained: FlightError | None = None
        self._explaining = threading.Lock()
        self._lanes: list[Lane] = []
        # on CUDA a codec may wait for bytes whose hop was only enqueued: under a lock two ranks
        # could wait for one another for ever
        self.turn: AbstractContextManager[Any] = (
            nullcontext() if device.type == "cuda" else threading.Lock()
        )
        self.watch = self._start_watch()
        self._groups: dict[tuple[int, Ranks], Any] = {}
        self._threads: set[int] = set()  # the transport's own, by their numbers
        self._transport_s = 0.0
        # The control lane, enough to compare facts; `prepare` makes the rest.
        self._refuse_too_many(1, self.world.bit_length())
        self._make(lanes, tuple(range(self.world)))
        self._lanes = [Lane(self, index, device) for index in range(lanes + 1)]
        self._closed = False

    @property
    def transport(self) -> Transport:
        gloo = self._backend == "gloo"
        return Transport(window_bytes=GLOO_WINDOW if gloo else None, waits=gloo)

    def prepare(
        self, groups: tuple[Ranks, ...], lanes: int | None = None, peers: int | None = None
    ) -> None:
        lane_count = self.lanes if lanes is None else lanes
        everybody = tuple(range(self.world))
        self._refuse_too_many(
            sum((lane, everybody) not in self._groups for lane in range(lane_count)),
            self.world - 1 if peers is None else peers,
        )
        for ranks in (everybody, *groups):
            for lane in range(lane_count):
                if (lane, ranks) not in self._groups:
                    self._make(lane, ranks)

    def _refuse_too_many(self, groups: int, peers: int) -> None:
        """Raise where this process may not open the connections of so many process groups.

        Raises:
            AttachError: it says how many are needed, and what to set.
        """
        if self._backend != "gloo" or not groups:
            return
        reason = refusal(self.world, needed(self.world, groups, peers))
        if reason is not None:
            error = AttachError(reason)
            self.watch.close(error)
            raise error

    def _make(self, lane: int, ranks: Ranks) -> None:
        """Make a process group of some ranks for a lane.

        Within a subset of the world only its members call, and torch then names a group by its
        ranks alone.
        """
        members = [self._members[rank] for rank in ranks]
        # Over the whole world every rank must call `new_group`, also for groups without it.
        if self.rank in ranks or not self.global_ranks:
            # Threads that appear meanwhile are the transport's own: their processor time is
            # counted.
            before = thread_ids()
            try:
                with connecting(self.world):
                    made = dist.new_group(
                        members,
                        timeout=self.timeout,
                        backend=self._backend,
                        use_local_synchronization=bool(self.global_ranks),
                    )
            except RuntimeError as error:
                explained = self.explain(error, "attach: connecting")
                self.watch.close(explained)
                raise explained from error
            self._groups[lane, ranks] = made
            self._threads |= thread_ids() - before

    def transport_s(self) -> float:
        if not self._closed:
            self._transport_s = sum(map(thread_s, self._threads))
        return self._transport_s

    def set_phase(self, label: str) -> None:
        self.watch.set_phase(label)

    def start(self, flight: Flight[T], lane: int, label: str) -> TorchHandle[T]:
        if self._closed:  # no thread would take it up, and whoever waits for it would wait for good
            raise FlightError(
                f"{label}: the syncer is closed, and nothing flies any more. Attach again"
            )
        handle = TorchHandle(self, self._lanes[lane], flight, label)
        self._lanes[lane].put(handle)
        return handle

    def close(self) -> None:
        self.transport_s()
        self._closed = True
        for lane in self._lanes:
            lane.stop()
        self.watch.close(sys.exc_info()[1])
        # Groups of a subset stay: one made again under the same name would meet the addresses of
        # the one before.
        for (_, ranks), made in self._groups.items():
            if self.rank in ranks and not self.global_ranks:
                with suppress(ValueError):  # the user's destroy_process_group() ended them all
                    dist.destroy_process_group(made)
        self._groups.clear()

    def abandon(self, error: BaseException | None = None) -> None:
        self.transport_s()
        self._closed = True
        for lane in self._lanes:
            lane.leave()
        self.watch.close(error)

    def hops(self) -> Hops:
        """Return where each lane is: flight, hop, and the ranks whose bytes it waits for."""
        return {index: lane.position for index, lane in enumerate(self._lanes)}

    def move(self, hop: Hop, lane: int) -> tuple[Any, float]:
        """Move one hop; return its answer, and the bytes that this rank handed to the wire."""
        waits = self._lanes[lane].waits_for
        if isinstance(hop, AllReduce):
            waits([rank for rank in hop.group if rank != self.rank])
            on_wire = hop.tensor.to(self._wire)
            dist.all_reduce(on_wire, group=self._groups[lane, hop.group])
            # The tensor was copied to the host: copy the sum back, in place.
            if on_wire is not hop.tensor:
                hop.tensor.copy_(on_wire)
            return hop.tensor, allreduce_nbytes(
                hop.tensor.numel() * hop.tensor.dtype.itemsize, len(hop.group)
            )
        return self._exchange(hop, self._groups[lane, tuple(range(self.world))], waits)

    def _exchange(
        self, hop: Exchange, group: Any, waits: Callable[[Sequence[int]], None]
    ) -> tuple[dict[int, Tensor], float]:
        """Post all receives, then send one message at a time.

        So a link is used to 0.95 of its rate, where all at once gives 0.6.
        """
        buffers = {rank: memory.empty(nbytes, torch.uint8, self._wire) for rank, nbytes in hop.recv}
        outgoing = [(rank, payload.to(self._wire)) for rank, payload in hop.send if payload.numel()]
        sent = float(sum(payload.numel() for _, payload in outgoing))
        waits([rank for rank, nbytes in hop.recv if nbytes])
        # NCCL: all messages of the hop in one batch. One by one, two ranks that both send first
        # would wait for one another.
        if self._wire.type == "cuda":
            ops = [
                dist.P2POp(dist.irecv, buffer, group=group, group_peer=rank)
                for rank, buffer in buffers.items()
                if buffer.numel()
            ]
            ops += [
                dist.P2POp(dist.isend, payload, group=group, group_peer=rank)
                for rank, payload in outgoing
            ]
            for work in dist.batch_isend_irecv(ops) if ops else ():
                work.wait()
            return buffers, sent
        # gloo: post every receive, then send one message after another.
        receives = {
            rank: dist.irecv(buffer, group=group, group_src=rank)
            for rank, buffer in buffers.items()
            if buffer.numel()
        }
        for rank, payload in outgoing:
            _wait(dist.isend(payload, group=group, group_dst=rank))
        # Note which ranks are still missing, for a diagnosis if this never ends.
        for rank, receive in receives.items():
            waits(
                [
                    other
                    for other, work in receives.items()
                    if other == rank or work is None or not work.is_completed()
                ]
            )
            _wait(receive)
        return {rank: buffer.to(self.device) for rank, buffer in buffers.items()}, sent

    def explain(self, error: BaseException, label: str) -> ThinwireError:
        """Return what a failed flight means, by heartbeats and beacons.

        The other ranks get a message, lest they blame this rank when it ends.
        """
        if isinstance(error, ThinwireError):
            return error
        # One diagnosis for all lanes: they fail together, and each look takes seconds.
        with self._explaining:
            if self._explained is None:
                verdict, self._explained = self._diagnose(error, label)
                self.watch.end("failed", first_line(self._explained), verdict)
        return self._explained

    def _diagnose(self, error: BaseException, label: str) -> tuple[Diagnosis, FlightError]:
        diagnosis, standings = self.watch.diagnose()
        last = "; ".join(f"rank {rank}: {standing.label}" for rank, standing in standings.items())
        cause = f"{type(error).__name__}: {transport_cause(error)}"
        if self.global_ranks:
            last += f". Rank r is the r-th of {list(self.global_ranks)}, counted from 0"
        carried = f"{label} could not be carried ({cause}). Last reports: {last}"
        # By what the diagnosis has found: ranks, a link, this rank itself, or nothing.
        if diagnosis.kind in ("raised", "lost"):
            return diagnosis, RankLostError(diagnosis.ranks, f"{diagnosis.text}. {carried}")
        if diagnosis.kind == "left":
            return diagnosis, RankLostError(
                diagnosis.ranks,
                f"{diagnosis.text} while others were in {label} ({cause}). Last reports: {last}",
            )
        if diagnosis.kind == "link":
            return diagnosis, LinkLostError(
                diagnosis.ranks, diagnosis.link is not None, f"{diagnosis.text}. {carried}"
            )
        if diagnosis.kind in ("alone", "store"):
            return diagnosis, FlightError(f"{diagnosis.text}. {carried}")
        return diagnosis, FlightError(
            f"{label} could not be carried within {self.timeout.total_seconds():g} s, though "
            f"every rank's heart beats ({cause}). "
            f"Last reports: {last}. Do all ranks run the same number of steps?"
        )

    def _start_watch(self) -> Watch:
        c10d: Any = dist.distributed_c10d
        keys = (
            f"thinwire/{'-'.join(map(str, self._members))}/{_next_generation(tuple(self._members))}"
        )
        store = c10d.PrefixStore(keys, c10d._get_default_store()).clone()
        held_by_agent = dist.is_torchelastic_launched() or 0 not in self._members
        return Watch(
            store,
            self.rank,
            self.world,
            host=None if held_by_agent else self._members.index(0),
            hops=self.hops,
        )


def transport_cause(error: BaseException) -> str:
    """Return the transport's error in a line, without gloo's advice to read other ranks' logs.

    Example:
        >>> advice = "This is typically caused by a remote worker hanging."
        >>> transport_cause(RuntimeError(f"Connection reset by peer. {advice}"))
        'Connection reset by peer'
    """
    message = first_line(error).partition(". This is typically caused")[0]
    return message + interfaces.advice(message)


def _wait(work: Any) -> None:
    if work is not None:
        work.wait()


_generations: Counter[Ranks] = Counter()


def _next_generation(members: Ranks) -> int:
    """Return how many drivers this process has made among these ranks.

    All of them count alike, so each driver has its own keys in the store.
    """
    _generations[members] += 1
    return _generations[members]
