"""Delay packets between hosts, with jitter and loss: by netem where the kernel has it, else by
`line.py` and the kernel's packet queues."""

from __future__ import annotations

import json
import os
import select
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from thinwire.errors import LabError
from thinwire.lab import shape
from thinwire.lab.spaces import ANSWER_S, Child, Space, environment
from thinwire.net import Network

LINE = Path(__file__).with_name("line.py")
Means = Literal["auto", "netem", "queue"]


@dataclass(frozen=True, slots=True)
class LineStats:
    """A summary of how well packets were delayed since the last look. max_late_ms: the worst that
    one came after its time.

    seen, lost: packets, and those dropped to be lost; dropped: those that the line could not hold.
    netem tells nothing of it: no packet is seen, and how late they were is not known.
    """

    means: str
    seen: int = 0
    lost: int = 0
    dropped: int = 0
    max_late_ms: float | None = None
    mean_late_ms: float | None = None
    cpu_s: float = 0.0

    @property
    def lateness(self) -> str:
        """Return the lateness in words."""
        return (
            "how late is not measured"
            if self.max_late_ms is None
            else f"at most {self.max_late_ms:.1f} ms late"
        )


class Netem:
    """Delay by the kernel's netem."""

    child: Child | None = None

    def __init__(self, network: Network, switches: Space, spaces: Mapping[str, Space]) -> None:
        self._switches, self._queues, self._seeded = (
            switches,
            by_host(network),
            "seed 65537" in _tried(switches, "seed", "65537"),
        )
        for there in self._queues.values():
            switches.call(
                ["tc", "-batch", "-"], "\n".join(shape.netem_tree(network, there, self._seeded))
            )
            if any(queue.lossy for queue in there):  # else a super-packet of 40 would be lost whole
                for source in {source for queue in there for source in queue.sources}:
                    spaces[source].call(["ip", "link", "set", shape.DEV, "gso_max_segs", "1"])

    def set(self, network: Network) -> None:
        """Take up the wires of a network."""
        places = [(queue, i) for there in self._queues.values() for i, queue in enumerate(there, 1)]
        lines = [shape.netem(network, queue, i, "change", self._seeded) for queue, i in places]
        self._switches.call(["tc", "-batch", "-"], "\n".join(lines))

    def stats(self) -> LineStats:
        return LineStats("netem")


class Queued:
    """Delay by `line.py` and packet queues."""

    def __init__(
        self,
        network: Network,
        switches: Space,
        spaces: Mapping[str, Space],
        pids: Mapping[str, int],
    ) -> None:
        self._pids, self._queues = pids, shape.queues(network)
        tables = next(
            (
                name
                for name in ("iptables-nft", "iptables")
                if shutil.which(name, path=environment()["PATH"])
            ),
            None,
        )
        if tables is None:
            raise LabError(
                "this kernel has no netem, and delay, jitter and loss without it need iptables: "
                "install it, as in apt-get install iptables"
            )
        # One pipe for commands and one for answers; the child holds its ends alone.
        there, self._commands = os.pipe()
        self._answers, here = os.pipe()
        self._rest = b""
        self._open = True
        try:
            self.child = switches.popen(
                [sys.executable, "-I", str(LINE)], stdin=there, stdout=here, stderr=2
            )
        finally:
            os.close(there)
            os.close(here)
        self._send({"queues": self._queue_settings(network), "seed": network.seed})
        # Wait for "ready": before it, a rule would drop what it should delay.
        self._receive()
        for queue in self._queues:
            for rule in shape.queue_rules(network, queue):
                spaces[queue.to].call([tables, *rule])

    def set(self, network: Network) -> None:
        """Take up the wires of a network."""
        self._send({"set": self._queue_settings(network)})

    def stats(self) -> LineStats:
        self._send({"stats": True})
        return LineStats("queue", **json.loads(self._receive()))

    def close(self) -> None:
        """Let go of it: it ends."""
        if self._open:
            self._open = False
            os.close(self._commands)
            os.close(self._answers)

    def _queue_settings(self, network: Network) -> list[dict[str, object]]:
        out: list[dict[str, object]] = []
        for queue in self._queues:
            wire = network.wire_between(queue.sources[0], queue.to)
            ways = {"delay": wire.latency_s, "jitter": wire.jitter_s, "loss": wire.loss}
            out.append(
                {
                    "pid": self._pids[queue.to],
                    "queue": queue.number,
                    "whole": not queue.lossy,
                    **ways,
                }
            )
        return out

    def _send(self, command: dict[str, object]) -> None:
        try:
            os.write(self._commands, json.dumps(command).encode() + b"\n")
        except BrokenPipeError:
            raise LabError("the process that delays packets has ended") from None

    def _receive(self) -> str:
        while b"\n" not in self._rest:
            ready = select.select([self._answers], [], [], ANSWER_S)[0]
            data = os.read(self._answers, 1 << 16) if ready else b""
            if not data:
                raise LabError(
                    "the process that delays packets does not answer; does this kernel have "
                    "NFQUEUE (modprobe nfnetlink_queue xt_NFQUEUE)?"
                )
            self._rest += data
        line, _, self._rest = self._rest.partition(b"\n")
        return line.decode()


def chosen(network: Network, switches: Space, means: Means) -> Means | None:
    """Choose by which means this network's packets are delayed; `None` where nothing ever has
    to."""
    if not shape.queues(network):
        return None
    return means if means != "auto" else "netem" if has_netem(switches) else "queue"


def delayed(
    network: Network,
    switches: Space,
    spaces: Mapping[str, Space],
    pids: Mapping[str, int],
    means: Means,
) -> Netem | Queued:
    """Return what delays this network's packets, by the means chosen.

    Raises:
        LabError: the kernel cannot do it so.
    """
    return (
        Netem(network, switches, spaces)
        if means == "netem"
        else Queued(network, switches, spaces, pids)
    )


def has_netem(switches: Space) -> bool:
    """Return whether the kernel has netem."""
    return "netem" in _tried(switches)


def by_host(network: Network) -> dict[str, list[shape.Queue]]:
    """Return the queues of each host that has any."""
    out: dict[str, list[shape.Queue]] = {}
    for queue in shape.queues(network):
        out.setdefault(queue.to, []).append(queue)
    return out


def _tried(switches: Space, *more: str) -> str:
    """Return what tc shows of a netem, set up for a look; it shows no seed where the kernel (before
    6.6) or tc itself knows none."""
    switches.call(
        ["tc", "qdisc", "add", "dev", "lo", "root", "netem", "delay", "1ms", *more], allowed=True
    )
    shown = switches.call(["tc", "qdisc", "show", "dev", "lo"])
    if "netem" in shown:
        switches.call(["tc", "qdisc", "del", "dev", "lo", "root"])
    return shown
