"""Make batches ahead: while a step computes, a thread makes the next batches.

Threads, not processes: making a batch is a gather, a copy and the tokenizer's own code, which let
go of the interpreter, and nothing has to be sent from process to process (`benchmarks.input` has
both).
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from types import TracebackType
from typing import Generic, Self, TypeVar

from thinwire.data.loaders.workers import Workers

T = TypeVar("T")


class Prefetch(Generic[T]):
    """Call a function for the next steps in a thread, in order.

    Args:
        make: a step's batch. With one thread it is called for one step after the other, so it may
            read on from where it was; with more it must not mind the order.
        stop: the step that is never made; None: there is no last one.
        depth: how many batches may wait to be asked for.
        threads: how many make them.

    Raises:
        ValueError: a depth or a number of threads below 1.

    Example:
        >>> with Prefetch(lambda step: 10 * step, stop=5) as ahead:
        ...     [ahead.at(step) for step in (0, 1, 2, 4)]
        [0, 10, 20, 40]
    """

    def __init__(
        self, make: Callable[[int], T], *, stop: int | None = None, depth: int = 2, threads: int = 1
    ) -> None:
        if depth < 1 or threads < 1:
            raise ValueError(
                f"Prefetch(depth={depth}, threads={threads}): there must be at least 1 of each"
            )
        self._make, self._stop, self._depth = make, stop, depth
        self._workers = Workers(threads, "thinwire-input")
        self._ahead: deque[tuple[int, Future[T]]] = deque()
        self.wait_s = 0.0
        """Seconds that `at` has waited for, in all: the time that input took from training."""

    def at(self, step: int) -> T:
        """Return the batch of a step, and start those after it. A step out of order starts again
        from there.

        Raises:
            Exception: whatever making it raised, here and not before.
            ValueError: the step is `stop` or later.
            RuntimeError: closed before.
        """
        begun = time.perf_counter()
        if self._stop is not None and step >= self._stop:
            raise ValueError(f"Prefetch.at(step={step}): the last step is {self._stop - 1}")
        if not self._ahead or self._ahead[0][0] != step:
            self._drop()
            self._begin(step)
        _, future = self._ahead.popleft()
        try:
            self._fill(step)
            return self._workers.result(future)
        finally:
            self.wait_s += time.perf_counter() - begun

    def close(self) -> None:
        """Drop batches that were not used, and wait a moment for the one that is being made."""
        self._drop()
        self._workers.close()

    def _fill(self, step: int) -> None:
        following = self._ahead[-1][0] + 1 if self._ahead else step + 1
        while len(self._ahead) < self._depth and (self._stop is None or following < self._stop):
            self._begin(following)
            following += 1

    def _begin(self, step: int) -> None:
        self._ahead.append((step, self._workers.submit(self._make, step)))

    def _drop(self) -> None:
        while self._ahead:
            self._ahead.popleft()[1].cancel()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
