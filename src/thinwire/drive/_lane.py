"""Run flights one after another in a thread of their own, and wait for them."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from datetime import timedelta
from typing import Any, Generic, Protocol, TypeVar

import torch

from thinwire.core import Flight, Hop, Stage
from thinwire.core.collective import tensors_in
from thinwire.core.phase import phase
from thinwire.errors import ThinwireError

T = TypeVar("T")

LOOK_S = 0.5  # between two looks whether a hop goes on
MARGIN_S = 10.0  # that the transport has beyond its timeout, to raise an error of its own


class Mover(Protocol):
    """A driver as its lanes see it."""

    timeout: timedelta
    device: torch.device
    turn: AbstractContextManager[Any]

    def move(self, hop: Hop, lane: int) -> tuple[Any, float]:
        """Move one hop; return its answer and the bytes sent."""

    def explain(self, error: BaseException, label: str) -> ThinwireError:
        """Return what a failed flight means."""


class TorchHandle(Generic[T]):
    """A handle of a flight in progress, which its lane's thread fills."""

    def __init__(self, driver: Mover, lane: Lane, flight: Flight[T], label: str) -> None:
        self.driver, self.lane, self.flight, self.label = driver, lane, flight, label
        self.encode_s = self.carry_s = self.wire_s = self.sent_bytes = 0.0
        self.stages: list[Stage] = []
        self.result: T | None = None
        self.error: BaseException | None = None
        self.done = threading.Event()
        self.ready: Any = None  # CUDA: what the caller's stream had done at the launch
        self.landed: Any = None  # CUDA: when the lane's stream will have done it

    def wait(self) -> T:
        # 1. Wait for the lane, and look now and then whether it is stuck in a hop.
        while not self.done.wait(LOOK_S):
            if self.lane.stalled():  # the transport has a timeout of its own, and did not keep it
                limit = self.driver.timeout.total_seconds()
                error = TimeoutError(
                    f"the transport gave no answer within {limit:g} s, nor an error"
                )
                raise self.driver.explain(error, self.label) from error
        # 2. A failed flight: say why, once for all who wait.
        if self.error is not None:
            raise self.driver.explain(self.error, self.label) from self.error
        # 3. On CUDA order the caller's stream after the lane's, without a wait of the host.
        if self.landed is not None:
            stream = torch.cuda.current_stream(self.driver.device)
            stream.wait_event(self.landed)
            for tensor in tensors_in(self.result):
                if tensor.is_cuda:  # its memory must not be given away before this stream has read
                    tensor.record_stream(stream)
        return self.result  # type: ignore[return-value]  # T may itself be `None`


class Lane:
    """A lane: a thread that runs flights one after another."""

    def __init__(self, driver: Mover, index: int, device: torch.device) -> None:
        self._driver, self._index = driver, index
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._broken: BaseException | None = None
        # Flights that this lane has carried, hops of the current one, ranks that it waits for.
        self.position: tuple[int, int, tuple[int, ...]] = 0, 0, ()
        self._hop_begun: float | None = None
        self._queue: queue.SimpleQueue[TorchHandle[Any] | None] = queue.SimpleQueue()
        self._threads = torch.get_num_threads()
        self._thread = threading.Thread(
            target=self._loop, name=f"thinwire-lane-{index}", daemon=True
        )
        self._thread.start()

    def put(self, handle: TorchHandle[Any]) -> None:
        if self._stream is not None:
            handle.ready = torch.cuda.current_stream(self._stream.device).record_event()
        self._queue.put(handle)

    def stop(self) -> None:
        self.leave()
        while self._thread.is_alive() and not self.stalled():
            self._thread.join(LOOK_S)

    def waits_for(self, ranks: Sequence[int]) -> None:
        """Note whose bytes the hop under way waits for."""
        flight, hop, _ = self.position
        self.position, self._hop_begun = (flight, hop, tuple(ranks)), time.monotonic()

    def stalled(self) -> bool:
        """Return whether a hop has taken much longer than its transport's timeout."""
        begun, limit = self._hop_begun, self._driver.timeout.total_seconds()
        return begun is not None and time.monotonic() - begun > limit + max(MARGIN_S, limit / 2)

    def leave(self) -> None:
        """Stop after the flight under way, whenever that ends."""
        self._queue.put(None)

    def _loop(self) -> None:
        torch.set_num_threads(self._threads)  # a new thread would start with all cores
        while (handle := self._queue.get()) is not None:
            with (
                torch.cuda.stream(self._stream) if self._stream is not None else nullcontext(),
                torch.no_grad(),
            ):
                try:
                    if self._broken is not None:
                        raise self._broken
                    self._run(handle)
                    self.position = self.position[0] + 1, 0, ()
                except BaseException as error:  # stored for whoever waits for the flight
                    self._broken = handle.error = error
            handle.done.set()

    def _run(self, handle: TorchHandle[Any]) -> None:
        # What the caller's stream writes into the flight's tensors comes first.
        if self._stream is not None:
            self._stream.wait_event(handle.ready)
        reply: Any = None
        while True:
            # 1. Codec and route compute the next hop, one lane at a time.
            with self._driver.turn:
                clock = time.perf_counter()
                # of this thread's own: what it waits for the interpreter or a core is not the
                # codec's
                begun = time.thread_time()
                try:
                    with phase("encode", handle.label):
                        hop = handle.flight.send(reply)
                except StopIteration as stop:
                    handle.result = stop.value
                    break
                finally:
                    handle.encode_s += time.thread_time() - begun
                    left = time.perf_counter()
                    handle.stages.append(Stage("encode", clock, left))

            # 2. The transport moves it, beside other lanes.
            self.position = self.position[0], self.position[1] + 1, ()
            begun = time.thread_time()
            with phase("wire", handle.label):
                reply, sent = self._driver.move(hop, self._index)
            handle.carry_s += time.thread_time() - begun
            self._hop_begun = None
            handle.stages.append(Stage("wire", left, time.perf_counter(), sent))
            handle.wire_s += handle.stages[-1].end - left
            handle.sent_bytes += sent

        # 3. On CUDA the hops may only be enqueued so far.
        if self._stream is not None:
            handle.landed = self._stream.record_event()
            self._await(handle)

    def _await(self, handle: TorchHandle[Any]) -> None:
        """Wait until the stream has carried the flight.

        NCCL only enqueues, so a lost rank would be noticed nowhere else.
        """
        begun = time.perf_counter()
        limit = self._driver.timeout.total_seconds()
        while not handle.landed.query():
            if time.perf_counter() - begun > limit:
                raise TimeoutError(f"the stream did not come to an end within {limit:g} s")
            time.sleep(50e-6)
        handle.wire_s += time.perf_counter() - begun
