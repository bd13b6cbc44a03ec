"""Delay packets, with jitter and loss, for kernels without netem. Run by path, `python -I line.py`,
by `delay.py`; standard library only.

Packets that reach a host wait in a queue of the kernel (iptables -j NFQUEUE), which tells this
process of each over a netlink socket. The packet itself stays in the kernel: at arrival + delay one
verdict lets go of every packet of a queue that is due, and a lost one is dropped at once. Nothing
bypasses a queue: when this process is gone, the packets are dropped.

Standard input: one JSON object a line. First {"queues": [{"pid", "queue", "delay", "jitter",
"loss", "whole"}], "seed"}; then {"set": [{"pid", "queue", "delay", …}]} or {"stats": true}; an end
means the end. Standard output: "ready", then an object for each "stats".

whole: take super-packets as they come; else the kernel cuts them into packets of the wire's size
first, so that each is lost by itself.
"""

import contextlib
import ctypes
import json
import os
import random
import select
import socket
import struct
import sys
import time
from collections import deque
from typing import Any

NETFILTER, SUBSYSTEM = 12, 3 << 8
PACKET, VERDICT, CONFIG, BATCH = 0, 1, 2, 3
DROP, ACCEPT = 0, 1
NO_ENOBUFS, RCVBUFFORCE, SOL_NETLINK = 5, 33, 270
MOST_WAITING = 400_000  # packets that a queue holds
ONE_VERDICT_S = 1e-4  # packets due within it are let go together
NEWNET = 0x40000000
libc = ctypes.CDLL(None, use_errno=True)


def attribute(kind: int, data: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(data), kind) + data + b"\0" * (-len(data) % 4)


def message(kind: int, queue: int, body: bytes) -> bytes:
    return (
        struct.pack(
            "=IHHIIBBH", 20 + len(body), SUBSYSTEM | kind, 1, 0, 0, 0, 0, socket.htons(queue)
        )
        + body
    )


def enter(space: int) -> None:
    if libc.setns(space, NEWNET):
        raise OSError(ctypes.get_errno(), "setns")


def netlink(pid: int) -> socket.socket:
    """Return a netlink socket in the network of a process."""
    # A socket belongs to the network in which it was made: enter that, make it, and come back.
    own = os.open("/proc/self/ns/net", os.O_RDONLY)
    other = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY)
    try:
        enter(other)
        sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETFILTER)
    finally:
        enter(own)
        os.close(own)
        os.close(other)
    sock.bind((0, 0))
    # Without root a smaller buffer must do: what it cannot hold is counted as dropped.
    try:
        sock.setsockopt(socket.SOL_SOCKET, RCVBUFFORCE, 32 << 20)
    except PermissionError:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 32 << 20)
    sock.setsockopt(SOL_NETLINK, NO_ENOBUFS, 1)
    sock.setblocking(False)
    return sock


class Queue:
    """One queue of one host. Times in seconds, one way."""

    def __init__(self, sock: socket.socket, command: dict[str, Any], seed: int) -> None:
        self.sock, self.pid, self.number = sock, command["pid"], command["queue"]
        self.draw = random.Random(f"{seed} {self.pid} {self.number}").random
        # [seconds, the last packet that leaves then]: one verdict lets go of all before it.
        self.waiting: deque[list[Any]] = deque()
        self.set(command)
        self.head = message(BATCH, self.number, attribute(2, struct.pack(">II", ACCEPT, 0)))[:-4]
        self.drop = message(VERDICT, self.number, attribute(2, struct.pack(">II", DROP, 0)))[:-4]
        flags = 4 if command["whole"] else 0
        # Bind; copy what is known of a packet and not the packet; the longest queue; then the
        # flags.
        for body in (
            attribute(1, struct.pack(">BBH", 1, 0, 0)),
            attribute(2, struct.pack(">IB", 0, 1)),
            attribute(3, struct.pack(">I", MOST_WAITING)),
            attribute(4, struct.pack(">I", 4)) + attribute(5, struct.pack(">I", flags)),
        ):
            sock.send(message(CONFIG, self.number, body))

    def set(self, command: dict[str, Any]) -> None:
        self.delay, self.jitter, self.loss = command["delay"], command["jitter"], command["loss"]

    def arrive(self, packet: bytes, now: float) -> bool:
        """Note a packet that has come, and return whether it was lost."""
        if self.loss and self.draw() < self.loss:
            self.sock.send(self.drop + packet)
            return True
        due_at = now + self.delay + (self.jitter * self.draw() if self.jitter else 0.0)
        waiting = self.waiting
        if (
            waiting and due_at - waiting[-1][0] < ONE_VERDICT_S
        ):  # also where jitter would let it overtake
            waiting[-1][1] = packet
        else:
            waiting.append([due_at, packet])
        return False

    def dropped(self) -> int:
        """Packets that the kernel dropped because nobody took them in time."""
        with open(f"/proc/{self.pid}/net/netfilter/nfnetlink_queue") as file:
            lines = [line.split() for line in file]
        return sum(int(line[5]) + int(line[6]) for line in lines if int(line[0]) == self.number)


class Line:
    """All queues, and how well they are served."""

    def __init__(self, command: dict[str, Any]) -> None:
        socks = {pid: netlink(pid) for pid in {each["pid"] for each in command["queues"]}}
        self.queues = {
            (each["pid"], each["queue"]): Queue(socks[each["pid"]], each, command["seed"])
            for each in command["queues"]
        }
        self.socks = {
            sock.fileno(): (sock, {q: each for (p, q), each in self.queues.items() if p == pid})
            for pid, sock in socks.items()
        }
        self.clear()

    def clear(self) -> None:
        self.seen = self.lost = self.verdicts = 0
        self.late = self.late_sum = 0.0

    def stats(self) -> dict[str, float]:
        used = os.times()
        command = {
            "seen": self.seen,
            "lost": self.lost,
            "dropped": sum(queue.dropped() for queue in self.queues.values()),
            "max_late_ms": self.late * 1e3,
            "mean_late_ms": self.late_sum / max(self.verdicts, 1) * 1e3,
            "cpu_s": used.user + used.system,
        }
        self.clear()
        return command

    def take(self, fd: int) -> None:
        sock, queues = self.socks[fd]
        clock, receive = time.monotonic, sock.recv
        try:
            for _ in range(512):
                data = receive(512)
                if data[5] == 3 and data[4] == PACKET:
                    self.seen += 1
                    self.lost += queues[data[18] << 8 | data[19]].arrive(data[24:28], clock())
        except BlockingIOError:
            pass

    def release(self) -> None:
        now = time.monotonic()
        for queue in self.queues.values():
            last, waiting = None, queue.waiting
            while waiting and waiting[0][0] <= now:
                due_at, last = waiting.popleft()
                late = now - due_at
                self.late_sum += late
                self.verdicts += 1
                self.late = max(self.late, late)
            if last is not None:
                queue.sock.send(queue.head + last)

    def run(self, commands: int) -> None:
        """Serve until the commands end."""
        fds = [*self.socks, commands]
        rest = b""
        while True:
            # 1. Sleep until the next packet may leave, or something arrives.
            due_at = min(
                (queue.waiting[0][0] for queue in self.queues.values() if queue.waiting),
                default=None,
            )
            ready = select.select(
                fds, [], [], None if due_at is None else max(0.0, due_at - time.monotonic())
            )[0]
            # 2. Take packets, and obey commands; a command may come in parts.
            for fd in ready:
                if fd != commands:
                    self.take(fd)
                    continue
                data = os.read(commands, 1 << 16)
                if not data:
                    return
                *lines, rest = (rest + data).split(b"\n")
                for line in lines:
                    self.obey(json.loads(line))
            # 3. Let go of what has waited long enough.
            self.release()

    def obey(self, command: dict[str, Any]) -> None:
        for each in command.get("set", ()):
            self.queues[each["pid"], each["queue"]].set(each)
        if "stats" in command:
            print(json.dumps(self.stats()), flush=True)


if __name__ == "__main__":
    # To run before what the hosts run; without root, lateness is only measured and reported.
    with contextlib.suppress(PermissionError):
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(10))
    line = b""
    while not line.endswith(b"\n"):
        line += os.read(0, 1) or sys.exit(0)
    served = Line(json.loads(line))
    print("ready", flush=True)
    served.run(0)
