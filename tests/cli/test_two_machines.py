"""`thinwire train --nodes 2` where each machine's own name resolves to loopback, as Debian has it,
and nobody has named an interface."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

from tests.cli.test_cut import ADDRESSES, tool, two_machines
from tests.cli.test_train import ENV, FORKS, TINY, family
from tests.warm import FAMILY, python_elsewhere

PORT = 29400
ENDED_WITHIN_S = 200
TRAPPED = (
    'mount --make-rprivate / && mount --bind {hosts} /etc/hosts && hostname {name} && exec "$@"'
)


def trapped(enter: list[str], name: str, folder: Path) -> list[str]:
    """What to put before a command so that the machine is called `name`, which resolves to
    127.0.1.1 there."""
    hosts = folder / "hosts"
    hosts.write_text(f"127.0.0.1 localhost\n127.0.1.1 {name}\n")
    return [
        *enter,
        tool("unshare"),
        "--mount",
        "--uts",
        "sh",
        "-c",
        TRAPPED.format(hosts=hosts, name=name),
        "sh",
    ]


def test_a_name_that_leads_to_loopback_hinders_nobody(tmp_path: Path) -> None:
    env = {name: value for name, value in ENV.items() if name != "GLOO_SOCKET_IFNAME"}
    env[FAMILY] = FORKS.name
    python = python_elsewhere(tmp_path, "net", "uts", "mnt")
    with two_machines() as machines:
        launchers = []
        try:
            for node, enter in enumerate(machines):
                folder = tmp_path / str(node)
                folder.mkdir()
                meet = ["--nodes=2", f"--node-rank={node}", f"--master={ADDRESSES[0]}:{PORT}"]
                command = [
                    str(python),
                    "-m",
                    "thinwire",
                    "train",
                    *TINY,
                    "--steps=8",
                    f"--out={folder / 'out'}",
                    *meet,
                ]
                begin = trapped(enter, f"machine{node}", folder)
                launchers.append(
                    subprocess.Popen(
                        [*begin, *command],
                        stdout=subprocess.PIPE,
                        stderr=subprocess.PIPE,
                        text=True,
                        env=env,
                    ),
                )
            told = [each.communicate(timeout=ENDED_WITHIN_S) for each in launchers]
        finally:
            for pid in family():
                os.kill(pid, signal.SIGKILL)
            for launcher in launchers:
                launcher.wait()
    for node, (launcher, (_, said)) in enumerate(zip(launchers, told, strict=True)):
        assert launcher.returncode == 0, told
        assert (
            f"ranks talk over tw{node} ({ADDRESSES[node]}), which leads to "
            f"MASTER_ADDR={ADDRESSES[0]}"
        ) in said
    assert "all 2 ranks hold the same weights" in told[0][0]
    assert list((tmp_path / "1" / "out" / "checkpoints").glob("host-machine1/step-*"))
