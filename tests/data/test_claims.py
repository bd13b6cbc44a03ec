"""The laws of claims: one at a time, given back by the dead, taken from nobody who lives; and what
happens when that fails."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from thinwire.data import claims
from thinwire.data.cache import built_once
from thinwire.data.claims import LOCK, PARTIAL, claimed, left_behind, owner, partial


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claims, "RENEWED_S", 0.02)


def dead() -> str:
    """The name of a process of this host that has ended."""
    code = "from thinwire.data.claims import owner; print(owner())"
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.strip()


def elsewhere() -> str:
    """A name as another host would give itself."""
    return "0123456789ab-17-42-0"


def test_one_at_a_time(tmp_path: Path) -> None:
    inside: list[int] = []
    most: list[int] = []

    def work(number: int) -> None:
        with claimed(tmp_path / "folder") as ours:
            assert ours
            inside.append(number)
            most.append(len(inside))
            time.sleep(0.01)
            inside.remove(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1] * 6
    assert list(tmp_path.iterdir()) == []


def test_who_does_not_wait_is_told(tmp_path: Path) -> None:
    with claimed(tmp_path / "folder"), claimed(tmp_path / "folder", wait=False) as second:
        assert not second
    with claimed(tmp_path / "folder", wait=False) as third:
        assert third


def test_a_claim_of_the_dead_is_taken_at_once(tmp_path: Path) -> None:
    lock = tmp_path / f"folder{LOCK}"
    lock.write_text(dead())
    with claimed(tmp_path / "folder", wait=False) as ours:
        assert ours
        assert lock.read_text() != ""
    assert list(tmp_path.iterdir()) == []


def test_a_number_that_is_another_processs_now_is_no_owner(tmp_path: Path) -> None:
    host, pid, begun, number = owner().split("-")
    (tmp_path / f"folder{LOCK}").write_text(f"{host}-{pid}-{int(begun) - 1}-{number}")
    with claimed(tmp_path / "folder", wait=False) as ours:
        assert ours


def test_another_hosts_claim_holds_until_nobody_renews_it(tmp_path: Path) -> None:
    lock = tmp_path / f"folder{LOCK}"
    lock.write_text(elsewhere())
    with claimed(tmp_path / "folder", wait=False) as ours:
        assert not ours
    long_ago = time.time() - claims.STALE_S - 1
    os.utime(lock, (long_ago, long_ago))
    with claimed(tmp_path / "folder", wait=False) as ours:
        assert ours
    assert list(tmp_path.iterdir()) == []


def test_an_owner_renews_its_claim_and_its_folder(tmp_path: Path) -> None:
    lock = tmp_path / f"folder{LOCK}"
    with claimed(tmp_path / "folder"):
        os.utime(lock, (0, 0))
        deadline = time.monotonic() + 10
        while lock.stat().st_mtime == 0:
            assert time.monotonic() < deadline
            time.sleep(0.01)


def test_a_claim_made_while_an_old_one_was_broken_is_put_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = tmp_path / f"folder{LOCK}"
    lock.write_text("new")
    answers = iter(["old"])
    read = claims._read
    monkeypatch.setattr(claims, "_read", lambda path: next(answers, None) or read(path))
    claims._break(lock, owner())
    assert lock.read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == [lock.name]


def test_only_what_the_dead_left_is_swept(tmp_path: Path) -> None:
    mine, other, old = (
        partial(tmp_path / "a"),
        tmp_path / f"b.{elsewhere()}{PARTIAL}",
        tmp_path / f"c.{elsewhere()}{PARTIAL}",
    )
    gone = tmp_path / f"d.{dead()}{PARTIAL}"
    for path in (mine, other, old, gone):
        path.mkdir()
    os.utime(old, (0, 0))
    assert sorted(left_behind(tmp_path)) == [old, gone]


def test_two_that_build_at_once_end_with_the_first_ones(tmp_path: Path) -> None:
    """Each takes the other for dead: its claim is removed while it builds."""
    folder = tmp_path / "folder"
    began, first_done = threading.Event(), threading.Event()
    found = {}

    def slow(at: Path) -> None:
        began.set()
        (folder.with_name(folder.name + LOCK)).unlink()
        assert first_done.wait(20)
        (at / "who").write_text("slow")

    def build(name: str) -> None:
        found[name] = built_once(
            folder,
            slow if name == "slow" else (lambda at: (at / "who").write_text(name) and None),
            read,
        )

    def read(at: Path) -> str:
        return (at / "who").read_text()

    thread = threading.Thread(target=build, args=("slow",))
    thread.start()
    assert began.wait(20)
    build("quick")
    first_done.set()
    thread.join()
    assert found == {"slow": "quick", "quick": "quick"}
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]
