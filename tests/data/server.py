"""An HTTP server of some files that misbehaves as it is told to; `python -m tests.data.server
FOLDER PORT` serves a folder for real."""

from __future__ import annotations

import contextlib
import functools
import re
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

Fault = Callable[["Handler", bytes, int, int, int], None]
"""What a request gets in place of its answer; told the file, the first and last byte asked for, and
how many requests came before."""


@dataclass
class Site:
    """What is served, and how; `asked` are the ranges that came, `sent` the bytes that went."""

    files: dict[str, bytes] = field(default_factory=dict)
    faults: list[Fault | None] = field(default_factory=list)
    """One to a request, in order; afterwards there are none."""
    every: Fault | None = None
    ranges: bool = True
    etag: str = '"1"'
    asked: list[tuple[str, str]] = field(default_factory=list)
    sent: int = 0
    url: str = ""
    folder: Path | None = None

    def content(self, path: str) -> bytes | None:
        if self.folder is None:
            return self.files.get(path)
        place = self.folder / path.lstrip("/")
        return place.read_bytes() if place.is_file() else None


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = 30

    def __init__(self, site: Site, *args: object) -> None:
        self.site = site
        super().__init__(*args)  # type: ignore[arg-type]

    def do_GET(self) -> None:
        asked = self.headers.get("Range", "")
        site, number = self.site, len(self.site.asked)
        site.asked.append((self.path, asked))
        data = site.content(self.path.partition("?")[0])
        if data is None:
            self.send_error(404)
            return
        part = re.fullmatch(r"bytes=(\d+)-(\d+)", asked)
        first, last = (
            (int(part[1]), min(int(part[2]), len(data) - 1))
            if part and site.ranges
            else (0, len(data) - 1)
        )
        fault = site.faults.pop(0) if site.faults else site.every
        if fault is not None:
            fault(self, data, first, last, number)
        elif part and site.ranges and first >= len(data):
            self.head(416, 0, f"bytes */{len(data)}")
        else:
            ranged = part and site.ranges
            self.head(
                206 if ranged else 200,
                last - first + 1,
                f"bytes {first}-{last}/{len(data)}" if ranged else None,
            )
            self.send(data[first : last + 1])

    def head(
        self, status: int, length: int | None, part: str | None = None, etag: str | None = None
    ) -> None:
        self.send_response(status)
        if length is not None:
            self.send_header("Content-Length", str(length))
        if part:
            self.send_header("Content-Range", part)
        if self.site.etag:
            self.send_header("ETag", etag or self.site.etag)
        self.end_headers()

    def send(self, data: bytes) -> None:
        self.site.sent += len(data)  # before: who has read it all may look at once
        with contextlib.suppress(OSError):
            self.wfile.write(data)

    def hang_up(self) -> None:
        self.close_connection = True
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)

    def log_message(self, *_: object) -> None:
        """Nothing."""


def cut(share: float) -> Fault:
    """Announce all of it, send a share, and hang up."""

    def fault(to: Handler, data: bytes, first: int, last: int, number: int) -> None:
        to.head(206, last - first + 1, f"bytes {first}-{last}/{len(data)}")
        to.send(data[first : first + int(share * (last - first + 1))])
        to.hang_up()

    return fault


def stall(share: float, seconds: float) -> Fault:
    """The same, but say nothing more instead of hanging up."""

    def fault(to: Handler, data: bytes, first: int, last: int, number: int) -> None:
        to.head(206, last - first + 1, f"bytes {first}-{last}/{len(data)}")
        to.send(data[first : first + int(share * (last - first + 1))])
        time.sleep(seconds)
        to.hang_up()

    return fault


def status(code: int) -> Fault:
    return lambda to, *_: to.head(code, 0)


def refuse(to: Handler, data: bytes, first: int, last: int, number: int) -> None:
    to.hang_up()


def lie(size: int) -> Fault:
    """Speak of another size than the file has, and send what there is."""

    def fault(to: Handler, data: bytes, first: int, last: int, number: int) -> None:
        if first >= len(data):
            to.head(416, 0, f"bytes */{len(data)}")
            return
        to.head(206, last - first + 1, f"bytes {first}-{last}/{size}")
        to.send(data[first : last + 1])

    return fault


def announce(part: str, length: int | None) -> Fault:
    """A head of one's own, and two bytes."""

    def fault(to: Handler, data: bytes, first: int, last: int, number: int) -> None:
        to.head(206, length, part)
        to.send(b"ab")
        to.hang_up()

    return fault


@contextlib.contextmanager
def served(site: Site, host: str = "127.0.0.1", port: int = 0) -> Iterator[Site]:
    """The site, while it is up; `site.url` leads there."""
    server = ThreadingHTTPServer((host, port), functools.partial(Handler, site))
    server.daemon_threads = True
    site.url = f"http://{host}:{server.server_address[1]}"
    thread = threading.Thread(
        target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True
    )
    thread.start()
    try:
        yield site
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


if __name__ == "__main__":
    with served(Site(folder=Path(sys.argv[1])), "0.0.0.0", int(sys.argv[2])) as up:
        print(up.url, flush=True)
        threading.Event().wait()
