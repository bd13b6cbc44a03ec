"""Run hosts on this machine, joined by wires as thin, as long and as lossy as asked.

    with Lab(uniform(4, bits_per_s=100e6, wire=Wire(latency_s=0.025))) as lab:
        done = lab.run([sys.executable, "train.py"])
        print(done.worst, lab.counts()["host0"].sent_bytes)

Every host is a network namespace with one interface, `eth0`, a host name and /etc/hosts; `tc` holds
both ends of every link to its rate, and what reaches a host waits for its delay (`delay.py`). Root
is not needed where user namespaces are allowed.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType

from thinwire import env
from thinwire.errors import LabError
from thinwire.lab import labs, limits, shape
from thinwire.lab.counts import Count
from thinwire.lab.delay import LineStats, Means, Netem, Queued, by_host, chosen, delayed
from thinwire.lab.running import Ran, run
from thinwire.lab.spaces import Child, Space, switches
from thinwire.net import Network

BRAKE = Path(__file__).with_name("brake.py")
PORT = 29511  # of rank 0's store: each lab's network is its own, so no port is ever taken


class Lab:
    """Emulated hosts; see the module.

    Args:
        network: what to emulate.
        means: how packets are delayed: `netem`, `queue`, or netem where the kernel has it (`auto`).

    Raises:
        LabError: this machine cannot; it says what is missing.
    """

    def __init__(self, network: Network, means: Means = "auto") -> None:
        # Refuse first, then end what dead owners left, then build; a failure on the way ends the
        # lab.
        limits.check(network)
        self.network = network
        self.missing: list[str] = []
        self.stale = labs.clean()
        self.pids: dict[str, int] = {}
        self.spaces: dict[str, Space] = {}
        self._line: Netem | Queued | None = None
        self._brake: tuple[Child, int] | None = None
        self._now, self._cut = network.at(0.0), frozenset[str]()
        self._note: tuple[Path, int] | None = None
        self._switches, self._keeper = switches()
        try:
            self._note = labs.write(self._keeper.pid, network.names)
            self._build(means)
        except BaseException:
            self.close()
            raise

    @property
    def hosts(self) -> tuple[str, ...]:
        """The hosts' names, by rank."""
        return self.network.names

    @property
    def now(self) -> Network:
        """The network as it is now, without its schedule."""
        return self._now

    @property
    def cut(self) -> frozenset[str]:
        """The hosts that are cut off now."""
        return self._cut

    def popen(
        self,
        host: str,
        argv: Sequence[str],
        *,
        stdin: int | None = None,
        stdout: int | None = None,
        stderr: int | None = None,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
    ) -> Child:
        """Start a command on a host, with these descriptors (None: nothing is read or kept) and
        this environment (None: this process's)."""
        return self._space(host).popen(
            argv, stdin=stdin, stdout=stdout, stderr=stderr, env=env, cwd=cwd
        )

    def call(self, host: str | None, argv: Sequence[str], timeout: float = 20.0) -> str:
        """Return what a command on a host (None: beside the switches) writes to standard output.

        Raises:
            LabError: it fails, or is not done in time.
        """
        return self._space(host).call(argv, timeout=timeout)

    def run(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        timeout: float | None = None,
        grace: float = 30.0,
        on_line: Callable[[str, str, bool], None] | None = None,
    ) -> Ran:
        """Run a command once on every host, with torchrun's environment, while the network's
        schedule goes on.

        Args:
            argv: the command.
            env: on top of this process's environment.
            timeout: seconds until all hosts are stopped; None: never.
            grace: seconds that the others go on once one host has failed, and that each has to end
                after it is asked to.
            on_line: (host, line, whether of standard error) for each line; without it they are
                printed, `[host0] …`.

        Returns:
            The exit codes and what was counted.

        Raises:
            LabError: the lab itself failed meanwhile; all hosts are stopped.
        """
        return run(self, argv, env=env or {}, timeout=timeout, grace=grace, on_line=on_line)

    def environment(self, rank: int) -> dict[str, str]:
        """Return the environment variables that torchrun would set for a rank."""
        groups = self.network.groups()
        name = self.network.names[rank]
        node = next(i for i, group in enumerate(groups) if name in group)
        return {
            "RANK": str(rank),
            "WORLD_SIZE": str(len(self.hosts)),
            "LOCAL_RANK": str(groups[node].index(name)),
            "LOCAL_WORLD_SIZE": str(len(groups[node])),
            "GROUP_RANK": str(node),
            "GROUP_WORLD_SIZE": str(len(groups)),
            "MASTER_ADDR": shape.address(0),
            "MASTER_PORT": str(PORT),
            "GLOO_SOCKET_IFNAME": shape.DEV,
            "TP_SOCKET_IFNAME": shape.DEV,
            "NCCL_SOCKET_IFNAME": shape.DEV,
            "OMP_NUM_THREADS": env.text("OMP_NUM_THREADS", "1"),
        }

    def counts(self) -> dict[str, Count]:
        """Return what each host sent and received since the lab began.

        Links between switches are in it, too (`node0-core`, as its first switch sees it).
        """
        links = json.loads(self._switches.call(["ip", "-s", "-j", "link", "show"]))
        # One call for all ports of the switches; drops are counted on both sides of a host's link.
        stats = {
            each["ifname"].partition("@")[0]: each["stats64"] for each in links if "stats64" in each
        }
        drops = {None: self._drops(self._switches)} | {
            name: self._drops(space) for name, space in self.spaces.items()
        }
        out = {}
        for rank, name in enumerate(self.hosts):
            # At the switch's end: what it receives, the host has sent.
            there = stats[shape.port(rank)]
            dropped = drops[name].get(shape.DEV, 0) + drops[None].get(shape.port(rank), 0)
            out[name] = Count(
                *(
                    there["rx"]["bytes"],
                    there["tx"]["bytes"],
                    there["rx"]["packets"],
                    there["tx"]["packets"],
                ),
                dropped,
            )
        for i, link in enumerate(self.network.trunks):
            ends = [shape.trunk(i, end) for end in range(2)]
            there = stats[ends[0]]
            dropped = sum(drops[None].get(end, 0) for end in ends)
            out["-".join(link.between)] = Count(
                *(
                    there["tx"]["bytes"],
                    there["rx"]["bytes"],
                    there["tx"]["packets"],
                    there["rx"]["packets"],
                ),
                dropped,
            )
        return out

    def line_stats(self) -> LineStats | None:
        """Return how well packets were delayed since the last look; `None` where nothing is
        delayed."""
        return None if self._line is None else self._line.stats()

    def apply(self, second: float) -> None:
        """Make the network what its schedule says of a second."""
        now, cut = self.network.at(second), self.network.cut_at(second)
        if now == self._now and cut == self._cut:
            return
        # 1. Rates, only of the devices whose rate changes.
        before, after = shape.rates(self._now), shape.rates(now)
        for host in (None, *self.hosts):
            lines = [
                shape.limited(now, device, after[where, device])
                for where, device in after
                if where == host and after[where, device] != before[where, device]
            ]
            if lines:
                self._space(host).call(["tc", "-batch", "-"], "\n".join(lines))
        # 2. Delay, jitter and loss. 3. Hosts that are cut off leave their switch, or join it again.
        if self._line is not None:
            self._line.set(now)
        for rank, name in enumerate(self.hosts):
            if (name in cut) != (name in self._cut):
                line = (
                    f"link set {shape.port(rank)} nomaster"
                    if name in cut
                    else shape.joined(now, rank)
                )
                self._switches.call(["ip", "-batch", "-"], line)
        self._now, self._cut = now, cut

    def failure(self) -> str | None:
        """Return what of the lab itself has failed; `None` while all is well."""
        if (
            self._line is not None
            and self._line.child is not None
            and self._line.child.code is not None
        ):
            return (
                f"the process that delays packets has ended (exit code {self._line.child.code}): "
                "the lab's traffic has stopped"
            )
        if self._brake is not None and self._brake[0].code is not None:
            return f"the process that slows hosts down has ended (exit code {self._brake[0].code})"
        if self._keeper.poll() is not None:
            return "the lab has been ended from outside"
        return None

    def close(self) -> None:
        """End everything that runs in the lab, and the lab. A second time does nothing."""
        if isinstance(self._line, Queued):
            self._line.close()
        if self._brake is not None:
            os.close(self._brake[1])
            self._brake = None
        self._switches.close()  # process 1 ends, and all others with it
        for space in self.spaces.values():
            space.close()
        self._keeper.wait()
        if self._note is not None:
            labs.remove(*self._note)
            self._note = None

    def __enter__(self) -> Lab:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _space(self, host: str | None) -> Space:
        if host is None:
            return self._switches
        if host not in self.spaces:
            raise LabError(f"there is no host {host!r}; there are {', '.join(self.hosts)}")
        return self.spaces[host]

    def _build(self, means: Means) -> None:
        # 1. Hosts, each with a network of its own.
        network = self.network
        hosts_file = shape.hosts_file(network)
        for name in self.hosts:
            self.spaces[name], self.pids[name], missing = self._switches.host(name, hosts_file)
            self.missing = self.missing or missing
        # 2. Switches and the ports that join the hosts to them.
        how = chosen(network, self._switches, means)
        ports = shape.ports(network, self.pids, netem=by_host(network) if how == "netem" else ())
        self._switches.call(["ip", "-batch", "-"], "\n".join([*shape.bridges(network), *ports]))
        # 3. Inside each host: address, routes and TCP's settings.
        for rank, name in enumerate(self.hosts):
            try:
                self.spaces[name].call(
                    ["ip", "-batch", "-"], "\n".join(shape.inside(network, rank))
                )
            except LabError as error:
                if "congestion" in str(error):
                    raise LabError(
                        f"this kernel has no congestion control {network.congestion!r}: "
                        f"{_controls()}"
                    ) from error
                raise
            for key, value in network.sysctl.items():
                self._set(self.spaces[name], key, value)
        # 4. Rates of all devices; then delay, slowed CPUs, and the schedule's first second.
        for (host, device), rate in shape.rates(self._now).items():
            if rate is not None:
                self._space(host).call(
                    ["tc", "-batch", "-"], shape.limited(self._now, device, rate)
                )
        if how is not None:
            self._line = delayed(network, self._switches, self.spaces, self.pids, how)
        self._slow()
        self.apply(0.0)

    def _set(self, space: Space, key: str, value: str) -> None:
        path = "/proc/sys/" + key.replace(".", "/")
        try:
            space.call(["sh", "-c", 'printf %s "$1" > "$2"', "sh", value, path])
        except LabError as error:
            raise LabError(
                f"sysctl {key} = {value!r} is refused in a namespace: "
                f"{str(error).rpartition(': ')[2]}"
            ) from error

    def _slow(self) -> None:
        slowed = [
            {"pid": self.pids[host.name], "slow": host.slow}
            for host in self.network.hosts
            if host.slow > 1
        ]
        if not slowed:
            return
        # The process of the brake holds one end of the pipe: when this process ends, it ends, too.
        there, commands = os.pipe()
        try:
            self._brake = (
                self._switches.popen([sys.executable, "-I", str(BRAKE)], stdin=there, stderr=2),
                commands,
            )
        finally:
            os.close(there)
        os.write(commands, json.dumps({"hosts": slowed}).encode() + b"\n")

    @staticmethod
    def _drops(space: Space) -> dict[str, int]:
        queues = json.loads(space.call(["tc", "-s", "-j", "qdisc", "show"]))
        out: dict[str, int] = {}
        for each in queues:
            out[each["dev"]] = out.get(each["dev"], 0) + each.get("drops", 0)
        return out


def _controls() -> str:
    try:
        there = Path("/proc/sys/net/ipv4/tcp_available_congestion_control").read_text().split()
    except OSError:
        return "see /proc/sys/net/ipv4/tcp_available_congestion_control"
    return f"there are {', '.join(there)}; more by modprobe, as in modprobe tcp_bbr"
