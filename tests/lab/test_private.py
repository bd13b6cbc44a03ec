"""Notes of labs in a folder that any user may write: what is not this user's own is refused, and
nobody is killed for it."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from thinwire.errors import LabError
from thinwire.lab import labs, private

STRANGER = 12_345
as_root = pytest.mark.skipif(
    os.geteuid() != 0, reason="only root can give a folder to another user"
)


@pytest.fixture
def shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A temporary folder that everybody may write in."""
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    monkeypatch.setattr(private.tempfile, "gettempdir", lambda: str(tmp_path))
    tmp_path.chmod(0o1777)
    return tmp_path


@pytest.fixture
def victim() -> Iterator[subprocess.Popen[bytes]]:
    """A process of this user that is no lab."""
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    yield process
    process.kill()
    process.wait()


def note_of(pid: int, began: str | None = None) -> str:
    began = labs._began(pid) if began is None else began
    return json.dumps(
        {"owner": 999_999, "keeper": pid, "keeper_began": began, "begun": 0.0, "hosts": ["host0"]}
    )


def plant(folder: Path, text: str) -> Path:
    path = folder / "999999-1.json"
    path.write_text(text)
    path.chmod(0o600)
    return path


def own_folder(shared: Path) -> Path:
    folder = shared / f"thinwire-{os.geteuid()}"
    folder.mkdir(mode=0o700)
    return folder


def refused(match: str) -> None:
    """Every way in is closed, and says what to do."""
    for act in (labs.listed, labs.clean, lambda: labs.write(os.getpid(), ("host0",))):
        with pytest.raises(LabError, match=match) as told:
            act()
        assert "set TMPDIR to a folder of your own" in str(told.value)
    assert not [path for path in labs._own if path.parent == private.folder()]


def test_notes_lie_in_a_folder_of_this_user_alone(shared: Path) -> None:
    assert labs.listed() == []
    assert not list(shared.iterdir()), "looking makes nothing"
    path, fd = labs.write(os.getpid(), ("host0", "host1"))
    try:
        assert path.parent == shared / f"thinwire-{os.geteuid()}"
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert [(note.hosts, note.alive) for note in labs.listed()] == [(("host0", "host1"), True)]
    finally:
        labs.remove(path, fd)
    assert labs.listed() == []


@as_root
def test_a_folder_of_another_user_is_refused_and_nobody_is_killed(
    shared: Path, victim: subprocess.Popen[bytes]
) -> None:
    note = plant(own_folder(shared), note_of(victim.pid))
    for path in (note, note.parent):
        os.chown(path, STRANGER, STRANGER)
    refused(rf"belongs to user {STRANGER}, and this is user {os.geteuid()}")
    assert victim.poll() is None
    assert note.exists()


@pytest.mark.parametrize("mode", [0o777, 0o1777, 0o770])
def test_a_folder_that_others_may_write_in_is_refused(
    shared: Path, victim: subprocess.Popen[bytes], mode: int
) -> None:
    note = plant(own_folder(shared), note_of(victim.pid))
    note.parent.chmod(mode)
    refused(rf"other users may write in it \(mode {mode:o}\)")
    assert victim.poll() is None


def test_a_link_in_place_of_the_folder_is_refused(shared: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir(mode=0o700)
    (shared / f"thinwire-{os.geteuid()}").symlink_to(elsewhere)
    refused("it is a symbolic link")
    assert not list(elsewhere.iterdir())


def test_a_link_in_place_of_a_note_truncates_nothing(shared: Path) -> None:
    precious = shared / "precious"
    precious.write_text("mine")
    link = own_folder(shared) / f"{os.getpid()}-{os.getpid()}.json"
    link.symlink_to(precious)
    assert labs.listed() == []
    path, fd = labs.write(os.getpid(), ("host0",))
    try:
        assert path == link
        assert not path.is_symlink()
    finally:
        labs.remove(path, fd)
    assert precious.read_text() == "mine"


@as_root
def test_a_note_of_another_user_is_no_note(shared: Path, victim: subprocess.Popen[bytes]) -> None:
    note = plant(own_folder(shared), note_of(victim.pid))
    os.chown(note, STRANGER, STRANGER)
    assert labs.clean() == []
    assert victim.poll() is None


def test_what_is_no_plain_file_or_no_note_is_passed_over(shared: Path) -> None:
    folder = own_folder(shared)
    os.mkfifo(folder / "1-1.json")
    (folder / "2-2.json").mkdir()
    plant(folder, '{"owner": "x", "keeper": [], "keeper_began": 1, "begun": {}, "hosts": 3}')
    assert labs.listed() == []


@pytest.mark.parametrize("began", ["1", ""])
def test_another_process_of_the_same_number_is_left_alone(
    shared: Path, victim: subprocess.Popen[bytes], began: str
) -> None:
    note = plant(own_folder(shared), note_of(victim.pid, began))
    assert labs.clean() == []
    assert victim.poll() is None
    assert not note.exists(), "it is of a lab that is gone"


@as_root
def test_a_process_of_another_user_is_left_alone(shared: Path) -> None:
    other = subprocess.Popen(["sleep", "60"], user=STRANGER)
    try:
        plant(own_folder(shared), note_of(other.pid))
        assert labs.clean() == []
        assert other.poll() is None
    finally:
        other.kill()
        other.wait()


def test_a_lab_that_was_left_behind_is_ended(shared: Path, victim: subprocess.Popen[bytes]) -> None:
    note = plant(own_folder(shared), note_of(victim.pid))
    assert [ended.keeper for ended in labs.clean()] == [victim.pid]
    assert victim.wait(10) == -signal.SIGKILL
    assert not note.exists()


def test_the_run_time_folder_of_the_user_is_taken_where_it_is_private(
    shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime = tmp_path / "run"
    runtime.mkdir(mode=0o700)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(runtime))
    assert private.folder() == runtime / "thinwire"
    runtime.chmod(0o755)
    assert private.folder() == shared / f"thinwire-{os.geteuid()}"
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "absent"))
    assert private.folder() == shared / f"thinwire-{os.geteuid()}"
    if os.geteuid() == 0:  # what `sudo` leaves of the user who called it
        runtime.chmod(0o700)
        os.chown(runtime, STRANGER, STRANGER)
        monkeypatch.setenv("XDG_RUNTIME_DIR", str(runtime))
        assert private.folder() == shared / f"thinwire-{os.geteuid()}"
