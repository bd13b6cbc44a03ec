"""What a stranger who reaches the store's port can do to `thinwire train`: disturb a run, and never
run code in it."""

from __future__ import annotations

import base64
import ipaddress
import os
import pickle
import signal
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from torch.distributed import HashStore, TCPStore

from tests.cli.test_train import ended, family, start, until_saved, workers
from thinwire.errors import FlightError
from thinwire.launch.rendezvous import met, unpickling_launcher

LISTENS = "0A"  # a state, as /proc/net/tcp writes it


class Planted:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def bombs(path: Path) -> list[bytes]:
    """A pickle that creates `path`, bare and in base64 as torch's rendezvous writes its state."""
    bare = pickle.dumps(Planted(path))
    return [bare, base64.b64encode(bare)]


def listening(pid: int) -> Iterator[tuple[str, int]]:
    """The addresses and ports at which a process listens for TCP."""
    held = set()
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        try:
            held.add(str(entry.readlink()))
        except OSError:  # closed meanwhile
            continue
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
            local, _, state, *rest = line.split()[1:]
            if state == LISTENS and f"socket:[{rest[5]}]" in held:
                digits, _, port = local.partition(":")
                words = [
                    int(digits[at : at + 8], 16).to_bytes(4, "little")
                    for at in range(0, len(digits), 8)
                ]
                yield str(ipaddress.ip_address(b"".join(words))), int(port, 16)


def test_the_check_sees_what_listens_everywhere() -> None:
    everywhere = TCPStore("127.0.0.1", 0, None, True, timedelta(seconds=10), False)
    assert any(
        port == everywhere.port and not ipaddress.ip_address(host).is_loopback
        for host, port in listening(os.getpid())
    )


def test_one_machine_listens_on_loopback_alone_and_reads_no_pickle(tmp_path: Path) -> None:
    """Everything in the store becomes a pickle while ranks train, then a rank is lost and all meet
    anew over what is planted."""
    out, created = tmp_path / "out", tmp_path / "created"
    process = start("--workers=2", "--steps=60", "--save-every=20", f"--out={out}", "--restarts=1")
    until_saved(out, process)
    there = {place for pid in family() for place in listening(pid)}
    assert [place for place in there if not ipaddress.ip_address(place[0]).is_loopback] == []
    variables = next(iter(variables for variables in family().values() if b"RANK=1" in variables))
    run = next(
        line.decode().partition("=")[2]
        for line in variables
        if line.startswith(b"TORCHELASTIC_RUN_ID=")
    )
    names = {
        f"torch.rendezvous.{run}",
        run,
        "thinwire-meet/roster",
        *(f"thinwire-meet/join/{rank}" for rank in range(2)),
    }
    stores = [
        TCPStore("127.0.0.1", port, None, False, timedelta(seconds=10), False)
        for _, port in listening(process.pid)
    ]
    assert stores
    for bomb in bombs(created):
        for store in stores:
            for name in names | set(store.list_keys()):
                store.set(name, bomb)
        time.sleep(0.3)
    if 1 in workers():
        os.kill(workers()[1], signal.SIGKILL)
    ended(process)
    assert not created.exists()


def test_what_is_planted_where_ranks_meet_is_refused(tmp_path: Path) -> None:
    for bomb in [*bombs(tmp_path / "created"), b"[[]]", b"{}", b"[1, 2]"]:
        for rank in range(2):
            store = HashStore()
            for name in ("join/0", "join/1", "roster"):
                if name != f"join/{rank}":
                    store.set(name, bomb)
            with pytest.raises(FlightError):
                met(store, rank, 2, timedelta(seconds=0.3))
    assert not (tmp_path / "created").exists()


@pytest.mark.parametrize(
    ("words", "unpickles"),
    [
        ("torchrun --standalone --nproc-per-node=2 -m thinwire train", True),
        ("torchrun --nnodes 2 --rdzv_backend c10d --rdzv_endpoint a:1 -m thinwire train", True),
        ("torchrun --nnodes=2 --rdzv-backend=c10d -m thinwire train", True),
        ("torchrun --nnodes=2 --rdzv-backend=static --node-rank=0 -m thinwire train", False),
        ("python -m thinwire train --workers 2", False),
    ],
)
def test_a_launcher_that_unpickles_is_known_by_its_flags(
    words: str, unpickles: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = tmp_path / "cmdline"
    said.write_bytes(words.replace(" ", "\0").encode() + b"\0")
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    assert not unpickling_launcher(str(said))
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    assert unpickling_launcher(str(said)) == unpickles
