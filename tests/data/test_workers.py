"""Threads ahead: what was asked for is done in order, and nobody waits for one whose server has stalled."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from tests.data.server import Site, served, stall
from thinwire.data import Pipeline, Prefetch, Reader, SetReader, Streamed, Text, tokenizer_from, write_set
from thinwire.data.disk import DiskCache
from thinwire.data.remote import RemoteFile, store_of
from thinwire.data.workers import PATIENCE_S, Workers

SOON_S = 5 * PATIENCE_S  # beside other work; a stall is given up after 15 s, and a server after some 100
STALL = stall(0.1, 60)


def test_what_is_asked_is_done_in_order_and_failures_come_to_who_asked() -> None:
    done: list[int] = []
    workers = Workers(1, "test")
    futures = [workers.ask(done.append, number) for number in range(50)]
    failing = workers.ask(divmod, 1, 0)
    assert [workers.result(future) for future in futures] == [None] * 50
    assert done == list(range(50))
    with pytest.raises(ZeroDivisionError):
        workers.result(failing)
    workers.close()
    workers.close()
    with pytest.raises(RuntimeError, match="was closed"):
        workers.ask(int)


def test_threads_end_with_what_owns_them() -> None:
    def threads() -> int:
        return sum(each.name.startswith("forgotten") for each in threading.enumerate())

    workers = Workers(3, "forgotten")
    workers.result(workers.ask(int))
    assert threads() == 3
    del workers
    assert threads() == 0


def test_close_lets_go_of_who_waits_and_of_what_does_not_end() -> None:
    gate, heard = threading.Event(), list[BaseException]()
    workers = Workers(1, "test")
    endless, behind = workers.ask(gate.wait, 60), workers.ask(int)

    def wait() -> None:
        try:
            workers.result(endless)
        except RuntimeError as error:
            heard.append(error)

    waiting = threading.Thread(target=wait)
    waiting.start()
    begun = time.monotonic()
    workers.close()
    waiting.join(SOON_S)
    assert time.monotonic() - begun < SOON_S
    assert "closed before that was done" in str(heard[0])
    assert behind.cancelled()
    gate.set()


def test_a_process_ends_though_a_thread_does_not() -> None:
    program = "import threading; from thinwire.data.workers import Workers; w = Workers(1, 'x'); f = w.ask(threading.Event().wait, 60)"
    begun = time.monotonic()
    subprocess.run([sys.executable, "-c", program], check=True, timeout=50)
    assert time.monotonic() - begun < 30


@pytest.mark.parametrize("waits", [True, False], ids=["while a batch is waited for", "while nobody waits"])
def test_training_stops_while_a_server_stalls(tmp_path: Path, waits: bool) -> None:
    text = Text("letters", tuple(f"{at} and so on".encode() * 9 for at in range(300)), (b"held",))
    write_set(tmp_path / "set", text, tokenizer_from("byte", text, ["<|endoftext|>"]), 4096)
    with served(Site(folder=tmp_path / "set")) as site:
        source = SetReader(f"{site.url}/", tmp_path / "cache", 10**9)
        stream = Streamed(source, Reader(4), length=33)
        site.every = STALL
        ahead = Prefetch(stream.at)
        if waits:
            threading.Timer(0.5, ahead.close).start()
            with pytest.raises(RuntimeError, match="closed before"):
                ahead.at(0)
        begun = time.monotonic()
        ahead.close()
        stream.close()
        assert time.monotonic() - begun < SOON_S
        assert len(site.asked) > 1, "it did stall"
        with pytest.raises(RuntimeError, match="closed"):
            stream.at(0)


def test_a_stream_of_documents_stops_while_its_server_stalls(tmp_path: Path) -> None:
    with served(Site({"/a.txt": b"some text\n" * 1000})) as site:
        file = RemoteFile(f"{site.url}/a.txt", store_of(site.url), DiskCache(tmp_path))
        site.every = STALL
        tokenizer = tokenizer_from("byte", Text("none", (), ()), ["<|endoftext|>"])
        ahead = Prefetch(Pipeline(lambda: [file.read()], tokenizer, Reader(2), length=9).at)
        future = ahead._workers.ask(ahead._make, 0)
        begun = time.monotonic()
        while len(site.asked) < 2:
            time.sleep(0.01)
        ahead.close()
        assert time.monotonic() - begun < SOON_S
        assert not future.done()
