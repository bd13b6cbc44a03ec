"""Ask a store of `torch.distributed`, and wait no longer than a limit.

torch's TCPStore client reads the answer to `set`, `add`, `check`, `compare_set` and `delete_key`
from its socket without any limit, whatever `set_timeout` says: where the host is stopped or cut
off, the call never returns. So a thread asks, and the caller waits for it.
"""

from __future__ import annotations

import contextlib
import queue
import threading
import weakref
from collections.abc import Callable
from typing import Any, TypeVar

from thinwire.errors import FlightError
from thinwire.text.words import first_line

T = TypeVar("T")


class NoAnswerError(FlightError):
    """A store gave no answer: `silent` where none came in time, else the connection has failed."""

    def __init__(self, message: str, silent: bool) -> None:
        self.silent = silent
        super().__init__(message)


class _Question:
    """A question to the store, and what came of it."""

    def __init__(self, ask: Callable[[], Any]) -> None:
        self.ask = ask
        self.answer: Any = None
        self.error: Exception | None = None
        self.done = threading.Event()


class Asks:
    """A thread that puts questions to a store, one after another.

    Args:
        address: of the store, for messages.
        limit_s: seconds that a question may take.
    """

    def __init__(self, address: str, limit_s: float) -> None:
        self.address, self.limit_s = address, limit_s
        self._questions: queue.SimpleQueue[_Question | None] = queue.SimpleQueue()
        self._overdue: _Question | None = None
        threading.Thread(
            target=_answer, args=(self._questions,), name="thinwire-store", daemon=True
        ).start()
        self._finalizer = weakref.finalize(self, self._questions.put, None)

    @property
    def stuck(self) -> bool:
        """Return whether a question that ran out of time still waits for its answer."""
        return self._overdue is not None and not self._overdue.done.is_set()

    def ask(self, question: Callable[[], T], limit_s: float | None = None) -> T:
        """Return the store's answer.

        Raises:
            NoAnswerError: none came in time, or the connection failed. Where an earlier question
                still waits, at once.
        """
        if not self._finalizer.alive:
            raise NoAnswerError(
                f"nobody asks the store at {self.address} any more: this was closed", silent=False
            )
        limit = self.limit_s if limit_s is None else limit_s
        # While an earlier question is stuck the thread is, too: fail at once, and queue nothing.
        pending = _Question(question)
        if not self.stuck:
            self._questions.put(pending)
        if self.stuck or not pending.done.wait(limit):
            self._overdue = self._overdue if self.stuck else pending
            raise NoAnswerError(
                f"this rank cannot reach the store at {self.address}: it gave no answer within "
                f"{limit:g} s. The process that holds it is "
                "stopped, or this rank is cut off from it",
                silent=True,
            )
        if pending.error is not None:
            raise NoAnswerError(
                f"this rank cannot reach the store at {self.address} "
                f"({first_line(pending.error)}): the process that holds it has ended, or the "
                "connection was cut",
                silent=False,
            ) from pending.error
        answer: T = pending.answer
        return answer

    def close(self) -> None:
        """Let the thread end after the question under way."""
        self._finalizer()


def _answer(questions: queue.SimpleQueue[_Question | None]) -> None:
    while (pending := questions.get()) is not None:
        try:
            pending.answer = pending.ask()
        except Exception as error:  # stored for the caller, which raises it
            pending.error = error
        pending.done.set()
        del pending  # else it would hold the caller until the next question


def address_of(store: Any) -> str:
    """Return where a store is, as host:port; `in this process` where it has no address.

    Example:
        >>> import torch.distributed as dist
        >>> address_of(dist.PrefixStore("a", dist.HashStore()))
        'in this process'
    """
    host_and_port = endpoint_of(store)
    return "in this process" if host_and_port is None else f"{host_and_port[0]}:{host_and_port[1]}"


def endpoint_of(store: Any) -> tuple[str, int] | None:
    """Return host and port of a TCPStore, below any prefixes; `None` where a store has none."""
    while hasattr(store, "underlying_store"):
        store = store.underlying_store
    with contextlib.suppress(AttributeError, RuntimeError):
        return str(store.host), int(store.port)
    return None
