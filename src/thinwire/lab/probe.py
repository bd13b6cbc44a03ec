"""Measure what a lab delivers, from inside its hosts. Run by path, `python -I probe.py ROLE …`, by
`check.py`; standard library only.

    serve              answer the others, until killed
    rtt HOST N         N times a byte there and back over one TCP connection: seconds of each, as
                       JSON
    flood HOST S SIZE  UDP packets of SIZE bytes for S seconds, as fast as the socket takes them:
                       what arrived, and when
    count HOST N SIZE RATE  N numbered UDP packets at RATE a second: which arrived
    spin S             loops of arithmetic in S seconds

Roles flood and count ask the server over TCP what arrived, so a lost answer is sent again.
"""

import contextlib
import json
import select
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

PORT = 7077
QUIET_S = 1.0  # without a packet, all that will come has come
HEAD = struct.Struct("!Q")
SEGMENT, GRO = (
    103,
    104,
)  # of UDP: the kernel cuts a long buffer into packets, and joins packets into a long buffer
AT_ONCE = 20  # packets to a buffer


def sink(connection: socket.socket, size: int) -> dict[str, Any]:
    """Receive numbered packets of `size` bytes until the sender is done and none arrives any more.

    A message over `connection` announces that all packets were sent.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 << 20)
        # SO_RCVBUFFORCE, which root may: a burst must not be lost here, where it would count as the
        # link's.
        with contextlib.suppress(PermissionError):
            sock.setsockopt(socket.SOL_SOCKET, 33, 64 << 20)
        # Packets that arrive together may be read together.
        sock.setsockopt(socket.IPPROTO_UDP, GRO, 1)
        sock.bind(("", 0))
        connection.sendall(json.dumps({"port": sock.getsockname()[1]}).encode() + b"\n")
        # `over`: the sender is done; from then on packets may still come for `quiet` seconds.
        count, over, deadline = 0, False, 0.0
        seen: set[bytes] = set()
        marks: list[tuple[float, int]] = []  # (seconds, packets so far), to leave the beginning out
        while True:
            ready = select.select(
                [sock, *([] if over else [connection])], [], [], QUIET_S if over else None
            )[0]
            if not ready:
                break
            if connection in ready and not over:
                over = True
                quiet = float(connection.recv(64) or b"0")
                deadline = time.monotonic() + quiet
            if sock in ready:
                now = time.monotonic()
                # Some packets a turn, then one mark: a mark for each would cost more than the
                # packet.
                for _ in range(64):
                    try:
                        data = sock.recv(1 << 16, socket.MSG_DONTWAIT)
                    except BlockingIOError:
                        break
                    # A read may hold several packets of `size` bytes, each with its number first.
                    numbers = [data[at : at + HEAD.size] for at in range(0, len(data), size)]
                    count += len(numbers)
                    seen.update(numbers)
                marks.append((now, count))
            elif over and time.monotonic() > deadline:
                break
    return {"count": len(seen), "marks": marks[:: max(1, len(marks) // 400)] + marks[-1:]}


def serve() -> None:
    """Answer until killed."""
    listening = socket.create_server(("", PORT), backlog=64)
    print("ready", flush=True)
    while True:
        connection, _ = listening.accept()
        threading.Thread(target=answer, args=(connection,), daemon=True).start()


def answer(connection: socket.socket) -> None:
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    with connection:
        line = b""
        while not line.endswith(b"\n"):
            line += connection.recv(1) or b"\n"
        request = line.split()
        if request and request[0] == b"echo":
            while data := connection.recv(1):
                connection.sendall(data)
        elif request and request[0] == b"sink":
            connection.sendall(json.dumps(sink(connection, int(request[1]))).encode() + b"\n")


def read_line(connection: socket.socket) -> bytes:
    line = b""
    while not line.endswith(b"\n"):
        data = connection.recv(1 << 16)
        if not data:
            return line
        line += data
    return line


def reached(host: str, request: bytes) -> socket.socket:
    connection = socket.create_connection((host, PORT), timeout=120)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.sendall(request + b"\n")
    return connection


def rtt(host: str, n: int) -> list[float]:
    with reached(host, b"echo") as connection:
        taken = []
        for _ in range(n + 1):
            begun = time.perf_counter()
            connection.sendall(b".")
            connection.recv(1)
            taken.append(time.perf_counter() - begun)
    return taken[1:]  # the first goes with the request


def sent_to(
    host: str, size: int, send: Callable[[socket.socket, tuple[str, int]], int]
) -> dict[str, Any]:
    """Let `send(socket, address)` send numbered packets of `size` bytes; what it returns, and what
    arrived."""
    with (
        reached(host, b"sink %d" % size) as connection,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock,
    ):
        address = (socket.gethostbyname(host), json.loads(read_line(connection))["port"])
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 16)
        sent = send(sock, address)
        connection.sendall(b"3.0\n")
        return {"sent": sent, **json.loads(read_line(connection))}


def flood(host: str, seconds: float, size: int) -> dict[str, Any]:
    def send(sock: socket.socket, address: tuple[str, int]) -> int:
        sock.setsockopt(socket.IPPROTO_UDP, SEGMENT, size)
        rest, number, end = b"\0" * (size - HEAD.size), 0, time.monotonic() + seconds
        while time.monotonic() < end:
            sock.sendto(b"".join(HEAD.pack(number + i) + rest for i in range(AT_ONCE)), address)
            number += AT_ONCE
        return number

    return sent_to(host, size, send)


def count(host: str, n: int, size: int, rate: float) -> dict[str, Any]:
    def send(sock: socket.socket, address: tuple[str, int]) -> int:
        rest, begun = b"\0" * (size - HEAD.size), time.monotonic()
        for number in range(n):
            early = begun + number / rate - time.monotonic()
            if early > 0.001:
                time.sleep(early)
            sock.sendto(HEAD.pack(number) + rest, address)
        return n

    return sent_to(host, size, send)


def spin(seconds: float) -> int:
    end, loops = time.perf_counter() + seconds, 0
    while time.perf_counter() < end:
        for _ in range(100):
            loops += 1
    return loops


if __name__ == "__main__":
    role, *arguments = sys.argv[1:]
    if role == "serve":
        serve()
    roles: dict[str, Callable[[], Any]] = {
        "rtt": lambda: rtt(arguments[0], int(arguments[1])),
        "flood": lambda: flood(arguments[0], float(arguments[1]), int(arguments[2])),
        "count": lambda: count(
            arguments[0], int(arguments[1]), int(arguments[2]), float(arguments[3])
        ),
        "spin": lambda: spin(float(arguments[0])),
    }
    print(json.dumps(roles[role]()))
