"""A cache of what was fetched: never more than its limit, never another's bytes, and whole for
whoever holds it."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from thinwire.data.remote import disk
from thinwire.data.remote.disk import FOOTER, DiskCache
from thinwire.errors import DataError


def content(key: str) -> bytes:
    return key.encode() * 50


@settings(deadline=None, max_examples=40)
@given(keys=st.lists(st.sampled_from("abcdefgh"), max_size=25), limit=st.integers(50, 400))
def test_it_gives_what_was_asked_and_holds_no_more_than_its_limit(
    keys: list[str], limit: int
) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        cache = DiskCache(Path(folder), limit)
        held = []
        for key in keys:
            held.append((cache.get(key, lambda key=key: content(key)), key))  # type: ignore[misc]
            assert cache.used_bytes() <= limit
        assert all(bytes(view) == content(key) for view, key in held), (
            "what a reader holds outlives its eviction"
        )


def test_the_least_recently_used_goes_first(tmp_path: Path) -> None:
    cache = DiskCache(tmp_path, 150)
    fetched: list[str] = []

    def ask(key: str) -> None:
        cache.get(key, lambda: fetched.append(key) or content(key))  # type: ignore[func-returns-value]

    for at, key in enumerate("abcab"):
        ask(key)
        for path in tmp_path.iterdir():  # a clock that ticks once a question
            if path.stat().st_mtime > 1e9:
                os.utime(path, (at, at))
    ask("d")
    assert fetched == ["a", "b", "c", "d"]
    ask("a")
    ask("b")
    assert fetched == ["a", "b", "c", "d"]
    ask("c")
    assert fetched[-1] == "c"


@pytest.mark.parametrize("damage", ["cut", "empty", "flipped", "a few bytes"])
def test_a_damaged_entry_is_fetched_again(tmp_path: Path, damage: str) -> None:
    cache = DiskCache(tmp_path)
    cache.get("a", lambda: content("a"))
    [path] = tmp_path.iterdir()
    data = path.read_bytes()
    path.write_bytes(
        {
            "cut": data[:-20],
            "empty": b"",
            "flipped": bytes([data[0] ^ 1]) + data[1:],
            "a few bytes": data[:5],
        }[damage]
    )
    fetched = []
    assert bytes(cache.get("a", lambda: fetched.append(1) or content("a"))) == content("a")  # type: ignore[func-returns-value]
    assert fetched
    assert path.stat().st_size == 50 + FOOTER.size


def test_of_several_that_want_the_same_one_fetches(tmp_path: Path) -> None:
    fetched: list[int] = []
    gate = threading.Barrier(4)

    def ask(number: int) -> None:
        gate.wait(20)
        assert bytes(
            DiskCache(tmp_path).get("a", lambda: fetched.append(number) or content("a"))
        ) == content("a")  # type: ignore[func-returns-value]

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(fetched) == 1


def test_a_full_disk_makes_room_or_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = DiskCache(tmp_path, 200)
    cache.get("a", lambda: content("a"))
    cache.get("b", lambda: content("b"))
    cache.get("c", lambda: content("c"))
    replace, full = os.replace, [True]

    def refuse(source: Path, target: Path) -> None:
        if full and full.pop():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        replace(source, target)

    monkeypatch.setattr(disk.os, "replace", refuse)
    assert bytes(cache.get("d", lambda: content("d"))) == content("d")
    assert cache.used_bytes() <= 150, "what was used least made room"
    full[:] = [True] * 9
    monkeypatch.setattr(cache, "_free_space", lambda *_: 0)
    with pytest.raises(
        DataError,
        match=r"no room in .* \(No space left on device\): make some, or set THINWIRE_CACHE",
    ):
        cache.get("e", lambda: content("e"))
    assert not list(tmp_path.glob("*.partial")) + list(tmp_path.glob("*.lock"))


def test_what_fetching_raises_comes_through_and_leaves_nothing(tmp_path: Path) -> None:
    def fail() -> bytes:
        raise DataError("no such file there")

    with pytest.raises(DataError, match="no such file there"):
        DiskCache(tmp_path).get("a", fail)
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds nothing"):
        DiskCache(tmp_path, 0)
    with pytest.raises(DataError, match="50 bytes were fetched at once, and the cache may hold 49"):
        DiskCache(tmp_path, 49).get("a", lambda: content("a"))
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot be used"):
        DiskCache(tmp_path / "file").get("a", lambda: content("a"))
