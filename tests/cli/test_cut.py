"""A worker that the network cuts off while both train is named, and on both machines the run ends.

Two network namespaces stand for two machines, joined by a veth pair. One end goes down while both
train: packets vanish, and no connection is closed. That is unlike a worker that is killed or
stopped: here both sides live, and each has lost the other.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.cli.test_train import ENV, FORKS, TINY, family
from tests.warm import FAMILY, python_elsewhere

TIMEOUT_S = 8  # of a hop, as TINY has it
NAMED_WITHIN_S = (
    TIMEOUT_S + 12
)  # from the cut: a hop, two looks at the heartbeats, and cores that others use, too
ENDED_WITHIN_S = 60
HELD_S = 280  # a namespace lives no longer, even if this process is killed
# where the cut meets a rank: a flight, a save, a launch
WAITED_IN = r"step \d+(, bucket 0|: which checkpoints are whole|: status of the launch)"
ADDRESSES = ("10.77.0.1", "10.77.0.2")
PATH = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])


def tool(name: str) -> str:
    found = shutil.which(name, path=PATH)
    if found is None:
        pytest.skip(f"{name} is not installed: two machines are made with iproute2 and util-linux")
    return found


@contextmanager
def held(command: list[str]) -> Iterator[tuple[int, str]]:
    """A sleeping process that the command starts, and that keeps a namespace alive: its number, or
    0 and why not."""
    sleep = ["sh", "-c", f"echo ready && exec sleep {HELD_S}"]
    with subprocess.Popen(
        [*command, *sleep], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        try:
            ready = process.stdout.readline() == "ready\n"
            yield (process.pid, "") if ready else (0, process.stderr.read().strip())
        finally:
            process.kill()


@contextmanager
def two_machines() -> Iterator[list[list[str]]]:
    """What to put before a command to run it on machine 0 or 1; machine 0 has the interface tw0,
    machine 1 has tw1."""
    ip, unshare, nsenter = map(tool, ("ip", "unshare", "nsenter"))
    whys = []
    for flags, user in (
        ([], []),
        (["--user", "--map-root-user"], ["--user", "--preserve-credentials"]),
    ):  # as root, or as anyone
        with ExitStack() as stack:
            first, why = stack.enter_context(held([unshare, *flags, "--net"]))
            if not first:
                whys.append(why)
                continue
            enter = [[nsenter, f"--target={first}", *user, "--net"]]
            second, why = stack.enter_context(
                held([nsenter, f"--target={first}", *user, unshare, "--net"])
            )  # root there, too
            assert second, why
            enter.append([nsenter, f"--target={second}", *user, "--net"])
            run(enter[0], ip, f"link add tw0 type veth peer name tw1 netns {second}")
            for machine, address in enumerate(ADDRESSES):
                run(enter[machine], ip, "link set lo up")
                run(enter[machine], ip, f"addr add {address}/24 dev tw{machine}")
                run(enter[machine], ip, f"link set tw{machine} up")
            namespaces = {Path(f"/proc/{pid}/ns/net").readlink() for pid in (first, second)}
            yield enter
        assert not namespaces & set(networks()), "a namespace is left"
        return
    pytest.skip(f"no network namespaces here: {'; '.join(whys)}")


def run(enter: list[str], ip: str, words: str) -> None:
    subprocess.run([*enter, ip, *words.split()], check=True, timeout=30)


def networks() -> Iterator[Path]:
    """The network namespace of every process."""
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            yield (entry / "ns" / "net").readlink()
        except OSError:  # it has ended, or is not ours to ask
            continue


@contextmanager
def torchrun(
    enter: list[list[str]], folders: list[Path]
) -> Iterator[list[subprocess.Popen[bytes]]]:
    """One launcher and one worker on each machine. What they say goes into files, which nobody has
    to empty; at the end nobody is left."""
    launchers = []
    try:
        for node, folder in enumerate(folders):
            folder.mkdir()
            launch = [
                str(python_elsewhere(folder, "net")),
                "-m",
                "torch.distributed.run",
                "--nnodes=2",
                "--nproc-per-node=1",
                f"--node-rank={node}",
            ]
            meet = [
                f"--master-addr={ADDRESSES[0]}",
                "--master-port=29400",
                "-m",
                "thinwire",
                "train",
            ]
            flags = [*TINY, "--steps=100000", "--save-every=20", f"--out={folder / 'out'}"]
            env = ENV | {"GLOO_SOCKET_IFNAME": f"tw{node}", FAMILY: FORKS.name}
            with (folder / "told").open("wb") as told, (folder / "said").open("wb") as said:
                launchers.append(
                    subprocess.Popen(
                        [*enter[node], *launch, *meet, *flags], stdout=told, stderr=said, env=env
                    )
                )
        yield launchers
    finally:
        for pid in family():
            os.kill(pid, signal.SIGKILL)
        for launcher in launchers:
            launcher.wait()


@pytest.mark.long
def test_a_worker_that_is_cut_off_is_named_and_both_machines_end(tmp_path: Path) -> None:
    folders = [tmp_path / "0", tmp_path / "1"]
    with two_machines() as enter, torchrun(enter, folders) as launchers:

        def said(node: int) -> str:
            return (folders[node] / "said").read_text()

        for _ in range(900):
            if list((folders[0] / "out" / "checkpoints").glob("host-*/step-*")):
                break
            assert [launcher.poll() for launcher in launchers] == [None, None], said(0) + said(1)
            time.sleep(0.1)
        else:
            raise AssertionError(f"no checkpoint in 90 s: {said(0)}{said(1)}")
        run(enter[0], tool("ip"), "link set tw0 down")
        cut = time.monotonic()

        while "rank 1 lost" not in said(0):
            assert time.monotonic() - cut < NAMED_WITHIN_S, f"nobody named rank 1: {said(0)}"
            time.sleep(0.1)
        for node, launcher in enumerate(launchers):
            try:
                code = launcher.wait(max(0.1, cut + ENDED_WITHIN_S - time.monotonic()))
            except subprocess.TimeoutExpired:
                pytest.fail(
                    f"machine {node} still runs {ENDED_WITHIN_S} s after the cut, and has said: "
                    f"{said(node)}"
                )
            assert code == 1, said(node)
        for _ in range(50):
            if not family():
                break
            time.sleep(0.1)
        assert not family()

    assert re.search(
        (
            r"^thinwire train: rank 1 lost: no heartbeat, and this rank cannot reach it\. "
            rf"{WAITED_IN} "
        ),
        said(0),
        re.MULTILINE,
    )
    unreached = (
        r"^thinwire train: this rank cannot reach the store at 10\S+:\d+, which a launcher holds: "
        r"it does not answer\. "
    )
    assert re.search(rf"{unreached}{WAITED_IN} ", said(1), re.MULTILINE)
    assert "rank 1 lost" not in said(1)
