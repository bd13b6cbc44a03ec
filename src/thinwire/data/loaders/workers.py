"""Run threads that work ahead and that nobody must wait for: what they read from may stall for
minutes.

As `ThreadPoolExecutor`, but for the end: that one waits for what is being done, at `shutdown` or
when Python ends. These get `PATIENCE_S`, and what is not done by then is left to itself, in a
thread that holds up neither its caller nor the end of the process.
"""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

T = TypeVar("T")
PATIENCE_S = 1.0


class Workers:
    """Threads that run tasks in order of submission.

    Args:
        count: of threads, at least 1.
        name: of each.

    Example:
        >>> workers = Workers(2, "example")
        >>> workers.result(workers.submit(pow, 2, 5))
        32
        >>> workers.close()
    """

    def __init__(self, count: int, name: str) -> None:
        self._queue: SimpleQueue[tuple[Future[Any], Callable[..., Any], tuple[Any, ...]] | None] = (
            SimpleQueue()
        )
        self._over: Future[None] = Future()
        threads = [
            threading.Thread(target=_work, args=(self._queue,), name=f"{name}_{at}", daemon=True)
            for at in range(count)
        ]
        for thread in threads:
            thread.start()
        # Called also where nobody calls `close`, and when Python ends.
        self._end = weakref.finalize(self, _ended, self._queue, threads)

    def submit(self, do: Callable[..., T], *given: Any) -> Future[T]:
        """Run `do(*given)` in a thread; return the future of its result.

        Raises:
            RuntimeError: closed before.
        """
        if self._over.done():
            raise RuntimeError("it was closed: make a new one")
        future: Future[T] = Future()
        self._queue.put((future, do, given))
        return future

    def result(self, future: Future[T]) -> T:
        """Wait for a future, until it is done or `close` is called.

        Raises:
            Exception: whatever doing it raised.
            RuntimeError: closed before it was done.
        """
        if not future.done():
            either: tuple[Future[Any], ...] = (future, self._over)
            wait(either, return_when=FIRST_COMPLETED)
        if not future.done() or future.cancelled():
            raise RuntimeError("it was closed before that was done")
        return future.result()

    def close(self) -> None:
        """Start nothing more, release all waiting threads, and wait a moment for running tasks."""
        if not self._over.done():
            self._over.set_result(None)
        self._end()


def _work(queue: SimpleQueue[Any]) -> None:
    while (item := queue.get()) is not None:
        future, do, given = item
        if future.set_running_or_notify_cancel():
            try:
                future.set_result(do(*given))
            except BaseException as error:
                future.set_exception(error)
        del item, future, do, given  # or the last batch would stay until the next one is made


def _ended(queue: SimpleQueue[Any], threads: Sequence[threading.Thread]) -> None:
    # 1. Cancel what has not begun; 2. a None for each thread ends it; 3. wait, but not for ever.
    try:
        while (item := queue.get_nowait()) is not None:
            item[0].cancel()
    except Empty:
        pass
    for _ in threads:
        queue.put(None)
    until = time.monotonic() + PATIENCE_S
    # The current thread may be the one that drops the last reference.
    for thread in threads:
        if thread is not threading.current_thread():
            thread.join(max(0.0, until - time.monotonic()))
