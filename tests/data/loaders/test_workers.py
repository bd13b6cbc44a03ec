"""Threads ahead: what was asked for is done in order, and nobody waits for one whose server has
stalled."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.data.server import Site, served, stall
from thinwire.data import (
    Pipeline,
    Prefetch,
    Reader,
    SetReader,
    Streamed,
    Text,
    tokenizer_from,
    write_set,
)
from thinwire.data.loaders.workers import Workers
from thinwire.data.remote.disk import DiskCache
from thinwire.data.remote.stores import RemoteFile, store_of

# That the stall still lasts shows that nobody waited for it (its server is given up after some 100
# s); clocks say little on a busy machine.
STALL = stall(0.1, 300)


def test_what_is_asked_is_done_in_order_and_failures_come_to_who_asked() -> None:
    done: list[int] = []
    workers = Workers(1, "test")
    futures = [workers.submit(done.append, number) for number in range(50)]
    failing = workers.submit(divmod, 1, 0)
    assert [workers.result(future) for future in futures] == [None] * 50
    assert done == list(range(50))
    with pytest.raises(ZeroDivisionError):
        workers.result(failing)
    workers.close()
    workers.close()
    with pytest.raises(RuntimeError, match="was closed"):
        workers.submit(int)


def test_threads_end_with_what_owns_them() -> None:
    def threads() -> int:
        return sum(each.name.startswith("forgotten") for each in threading.enumerate())

    workers = Workers(3, "forgotten")
    workers.result(workers.submit(int))
    assert threads() == 3
    del workers
    assert threads() == 0


def test_close_lets_go_of_who_waits_and_of_what_does_not_end() -> None:
    begun, gate, heard = threading.Event(), threading.Event(), list[BaseException]()
    workers = Workers(1, "test")
    endless, behind = workers.submit(lambda: (begun.set(), gate.wait(250))), workers.submit(int)
    assert begun.wait(100)

    def wait() -> None:
        try:
            workers.result(endless)
        except RuntimeError as error:
            heard.append(error)

    waiting = threading.Thread(target=wait)
    waiting.start()
    workers.close()
    waiting.join(100)
    assert not endless.done()
    assert "closed before that was done" in str(heard[0])
    assert behind.cancelled()
    gate.set()


def test_a_process_ends_though_a_thread_does_not() -> None:
    program = (
        "import threading; from thinwire.data.loaders.workers import Workers; w = Workers(1, 'x'); "
        "w.submit(threading.Event().wait, 290)"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=200)


def when_asked(site: Site, do: Callable[[], None]) -> None:
    """Do something once the server has been asked again, and stalls."""
    before = len(site.asked)

    def wait() -> None:
        while len(site.asked) == before:
            time.sleep(0.01)
        do()

    threading.Thread(target=wait).start()


def test_training_stops_while_a_server_stalls(tmp_path: Path) -> None:
    text = Text("letters", tuple(f"{at} and so on".encode() * 9 for at in range(300)), (b"held",))
    write_set(tmp_path / "set", text, tokenizer_from("byte", text, ["<|endoftext|>"]), 4096)
    with served(Site(folder=tmp_path / "set")) as site:
        stream = Streamed(
            SetReader(f"{site.url}/", tmp_path / "cache", 10**9), Reader(4), length=33
        )
        site.every = STALL
        ahead = Prefetch(stream.at)
        when_asked(site, ahead.close)
        with pytest.raises(RuntimeError, match="closed before"):
            ahead.at(0)
        ahead.close()
        stream.close()
        assert any(coming.running() for coming in stream._coming.values()), (
            "it did stall, and still does"
        )
        with pytest.raises(RuntimeError, match="closed"):
            stream.at(0)


def test_a_stream_of_documents_stops_while_its_server_stalls(tmp_path: Path) -> None:
    with served(Site({"/a.txt": b"some text\n" * 1000})) as site:
        file = RemoteFile(f"{site.url}/a.txt", store_of(site.url), DiskCache(tmp_path))
        site.every = STALL
        tokenizer = tokenizer_from("byte", Text("none", (), ()), ["<|endoftext|>"])
        ahead = Prefetch(Pipeline(lambda: [file.read()], tokenizer, Reader(2), length=9).at)
        future = ahead._workers.submit(ahead._make, 0)
        when_asked(site, ahead.close)
        with pytest.raises(RuntimeError, match="closed before"):
            ahead._workers.result(future)
        assert future.running(), "it did stall, and still does"
