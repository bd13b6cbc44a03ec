"""Ranks that end, fail, crash, ignore signals or leave children, watched by the supervisor; each
rank is a line of shell."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import pytest

from thinwire.launch.supervise import Attempt, Supervisor


def ran(scripts: list[str], grace_s: float = 5.0) -> Attempt:
    """Run one shell script a rank."""
    environments = [{"SCRIPT": script, "PATH": os.environ["PATH"]} for script in scripts]
    return Supervisor(["sh", "-c", 'eval "$SCRIPT"'], grace_s).attempt(environments)


def test_all_end_well() -> None:
    assert ran(["exit 0", "sleep 0.2"]) == Attempt((0, 0))


def test_one_failure_ends_the_others_and_is_known_as_the_first(tmp_path: Path) -> None:
    asked = tmp_path / "asked"
    begun = time.monotonic()
    attempt = ran(
        [
            "sleep 0.3; exit 7",
            f"trap 'touch {asked}; exit 143' TERM; while :; do sleep 0.05; done",
            "sleep 60",
        ]
    )
    assert attempt == Attempt((7, 143, -signal.SIGTERM), first=(0,))
    assert asked.exists()
    assert time.monotonic() - begun < 20


def test_a_crash_is_a_negative_code() -> None:
    assert ran(["kill -KILL $$", "sleep 60"]) == Attempt(
        (-signal.SIGKILL, -signal.SIGTERM), first=(0,)
    )


def test_who_does_not_end_within_the_grace_is_killed_with_its_children(tmp_path: Path) -> None:
    child = tmp_path / "child"
    deaf = f"trap '' TERM; sleep 60 & echo $! > {child}; while :; do sleep 0.05; done"
    attempt = ran([deaf, f"while ! [ -s {child} ]; do sleep 0.05; done; exit 1"], grace_s=0.5)
    assert attempt == Attempt((-signal.SIGKILL, 1), first=(1,))
    for _ in range(50):
        if not Path("/proc", child.read_text().strip(), "cmdline").exists():
            break
        time.sleep(0.1)
    else:
        raise AssertionError("a rank's child is left")


@pytest.mark.parametrize(
    ("sent", "reaches"), [(signal.SIGINT, "INT"), (signal.SIGTERM, "TERM"), (signal.SIGHUP, "TERM")]
)
def test_a_signal_reaches_every_rank_once(
    sent: signal.Signals, reaches: str, tmp_path: Path
) -> None:
    scripts = []
    for rank in range(2):
        mark = tmp_path / str(rank)
        saving = (
            "sleep 0.5; " if rank == 0 else ""
        )  # longer than the other: it is not to be hurried
        scripts.append(
            f"trap '{saving}echo {reaches} >> {mark}; exit 3' {reaches}; touch {mark}; while :; "
            "do sleep 0.05; done"
        )

    def send() -> None:
        while len(list(tmp_path.iterdir())) < len(scripts):
            time.sleep(0.05)
        os.kill(os.getpid(), sent)

    found = signal.signal(
        sent, signal.SIG_DFL
    )  # SIGHUP may be ignored here, and then the supervisor leaves it so
    supervisor = Supervisor(["sh", "-c", 'eval "$SCRIPT"'], 10.0)
    with supervisor.listening():
        threading.Thread(target=send, daemon=True).start()
        attempt = supervisor.attempt(
            [{"SCRIPT": script, "PATH": os.environ["PATH"]} for script in scripts]
        )
    assert attempt.signal == sent
    assert attempt.codes == (3, 3)
    assert [(tmp_path / str(rank)).read_text() for rank in range(2)] == [f"{reaches}\n"] * 2
    assert signal.signal(sent, found) == signal.SIG_DFL


def test_nothing_is_started_after_a_signal() -> None:
    supervisor = Supervisor(["sh", "-c", "exit 9"], 1.0)
    with supervisor.listening():
        os.kill(os.getpid(), signal.SIGTERM)
        assert supervisor.attempt([{}, {}]) == Attempt((0, 0), signal=signal.SIGTERM)


def test_a_command_that_is_not_there_leaves_nothing() -> None:
    with pytest.raises(FileNotFoundError):
        Supervisor(["/nowhere/at/all"], 1.0).attempt([{}])
