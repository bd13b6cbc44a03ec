"""Read ranges of a file on an HTTP server. A connection that is cut, stalls or is too slow is
replaced, and continues where it stopped.

Nothing that a server says is taken on trust: of what length the file is, which part of it comes,
and that it is still the same file, every answer must say alike (RFC 9110, sections 13.1.5 and
14.2), and every byte that was asked for must come. Where a server leads elsewhere, it is followed
only as `data/remote/leads.py` allows.
"""

from __future__ import annotations

import contextlib
import http.client
import random
import re
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

from thinwire.data.remote.leads import HTTP, Leads, host_of
from thinwire.errors import DataError
from thinwire.text.words import error_text
from thinwire.version import __version__

CHUNK = 1 << 16
TRIES = 6  # in a row without a byte that is new
STALL_S = 15.0  # without any byte
TRICKLE_S, TRICKLE_BYTES = (
    30.0,
    30_000,
)  # a connection slower than a kilobyte a second is as good as dead
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.25, 8.0
AGAIN = (408, 425, 429, 500, 502, 503, 504)


@dataclass(frozen=True)
class About:
    """A file elsewhere: its size, and a version that changes with its content; empty if the server
    gives none."""

    size: int
    version: str


class _AgainError(Exception):
    """An error that may be gone at the next try."""


class Http:
    """Files by their `http://` or `https://` URLs.

    Args:
        stall_s: how long a connection may be silent.
        tries: failures in a row, without a byte between them, until the server is given up.
        sleep: waits between two of them.
        hosts: that an address may lead to, beside its own.
    """

    def __init__(
        self,
        *,
        stall_s: float = STALL_S,
        tries: int = TRIES,
        sleep: Callable[[float], None] = time.sleep,
        hosts: Collection[str] = (),
    ) -> None:
        self._stall_s, self._tries, self._sleep, self._hosts = (
            stall_s,
            tries,
            sleep,
            frozenset(hosts),
        )

    def about(self, url: str) -> About:
        """Return the size and version of a file.

        Raises:
            DataError: it cannot be had, or the server tells no size.
        """
        got = bytearray()
        return self._read(url, 0, 1, None, got)

    def read(self, url: str, begin: int, end: int, about: About) -> bytes:
        """Return the bytes from `begin` to `end` of the file as `about` describes it; of any
        version if that is empty.

        Raises:
            DataError: they cannot be had, or are of another file by now.
        """
        got = bytearray()
        if end > begin:
            self._read(url, begin, end, about, got)
        return bytes(got)

    def _read(self, url: str, begin: int, end: int, about: About | None, got: bytearray) -> About:
        # Failures in a row count; a connection that brought anything starts the count again.
        failures, had = 0, 0
        while True:
            try:
                about = self._once(url, begin, end, about, got)
                if len(got) >= min(end, about.size) - begin:
                    return about
                raise _AgainError(
                    f"the connection ended after {len(got)} of {min(end, about.size) - begin} bytes"
                )
            except (OSError, http.client.HTTPException, _AgainError) as error:
                if isinstance(error, DataError):
                    raise
                if len(got) > had:
                    failures, had = 0, len(got)
                failures += 1
                if failures >= self._tries:
                    raise DataError(
                        f"{url!r} cannot be read ({error_text(_cause(error))}), {failures} "
                        "times in "
                        "a row, "
                        f"after {len(got)} of {end - begin} bytes: check the address and the "
                        "line, then start again: what was fetched stays"
                    ) from error
                self._sleep(_pause(failures, error))

    def _once(self, url: str, begin: int, end: int, about: About | None, got: bytearray) -> About:
        """Read over one connection; what it brings is added to `got`, even if it fails."""
        # 1. Ask for what is missing only, as it is: a compressed answer has other byte numbers.
        start = begin + len(got)
        headers = {
            "Range": f"bytes={start}-{end - 1}",
            "User-Agent": f"thinwire/{__version__}",
            "Accept-Encoding": "identity",
        }
        try:
            if host_of(url) is None:
                raise DataError(
                    f"{url!r} is no address that can be read; give "
                    f"{' or '.join(f'{each}://HOST/PATH' for each in HTTP)}"
                )
            request = urllib.request.Request(url, headers=headers)
            answer = Leads(url, self._hosts).url_opener().open(request, timeout=self._stall_s)
        except DataError:
            raise
        except urllib.error.HTTPError as error:
            with contextlib.closing(error):
                return _refused(url, error, start, about)
        except ValueError as error:  # no address at all
            raise DataError(
                f"{url!r} is no address that can be read ({error}); give http://HOST/PATH"
            ) from error
        # 2. The file must be the same as before; then take what comes.
        with contextlib.closing(answer):
            described, first = _described_by(url, answer, start)
            if about is not None and (
                described.size != about.size
                or (about.version and described.version != about.version)
            ):
                raise DataError(
                    f"{url!r} has changed while it was read (size {about.size}, version "
                    f"{about.version!r}; now {described.size}, "
                    f"{described.version!r}): start again once it stays as it is"
                )
            self._take(answer, first, start, min(end, described.size), got)
        return described

    def _take(self, answer: Any, first: int, start: int, end: int, got: bytearray) -> None:
        """Take what the connection brings of `start` to `end`; it may begin before that."""
        # An answer to no range begins at byte 0: skip what was not asked for.
        skip, wanted = start - first, end - start
        since, here = time.monotonic(), 0
        while wanted > 0:
            block = answer.read1(min(CHUNK, skip + wanted))
            if not block:
                return
            here += len(block)
            skipped = min(skip, len(block))
            skip -= skipped
            got += block[skipped:]
            wanted -= len(block) - skipped
            # A connection that trickles would hold a run up for hours: give it up.
            if time.monotonic() - since > TRICKLE_S:
                if here < TRICKLE_BYTES:
                    raise _AgainError(f"only {here} bytes came in {TRICKLE_S:.0f} s")
                since, here = time.monotonic(), 0


def _described_by(url: str, answer: Any, start: int) -> tuple[About, int]:
    """Return what an answer says about the whole file, and its first byte."""
    length = answer.headers.get("Content-Length")
    version = answer.headers.get("ETag") or answer.headers.get("Last-Modified") or ""
    # The server knows no ranges, and sends all of it; without a length a cut would look like its
    # end.
    if answer.status == 200:
        if length is None or not length.isdecimal():
            raise DataError(
                f"{url!r}: the server does not say how long the file is, so a cut would look "
                "like its end; use another"
            )
        return About(int(length), version), 0
    # 206 must name the part, and all numbers must agree.
    part = re.fullmatch(
        r"bytes (\d+)-(\d+)/(\d+)", (answer.headers.get("Content-Range") or "").strip()
    )
    if answer.status != 206 or part is None:
        raise DataError(
            f"{url!r}: the server answers {answer.status} to a request for a range, without "
            "saying which one; use another"
        )
    first, last, size = map(int, part.groups())
    if first != start or last >= size or (length is not None and length != str(last - first + 1)):
        raise DataError(
            f"{url!r}: the server contradicts itself: asked from byte {start}, it sends {first} "
            f"to {last} of {size} and says that these "
            f"are {length} bytes; use another"
        )
    return About(size, version), first


def _refused(url: str, error: urllib.error.HTTPError, start: int, about: About | None) -> About:
    # A temporary refusal carries the server's wish to wait.
    if error.code in AGAIN:
        temporary = _AgainError(f"the server answers {error.code} {error.reason}")
        wait = error.headers.get("Retry-After", "")
        temporary.add_note(wait if wait.isdecimal() else "")
        raise temporary
    if error.code == 416:  # nothing lies there
        size = re.fullmatch(r"bytes \*/(\d+)", (error.headers.get("Content-Range") or "").strip())
        if about is None and start == 0 and (size is None or size[1] == "0"):
            return About(0, error.headers.get("ETag") or "")
        raise DataError(
            f"{url!r}: the server announced that the file has {about.size if about else '?'} bytes"
            f", and has none from byte {start} on: it lies "
            "about the length, or the file was cut; use another"
        )
    raise DataError(
        f"{url!r} cannot be read: the server answers {error.code} {error.reason}; check the address"
    )


def _cause(error: BaseException) -> BaseException:
    """Return the error that urllib has wrapped."""
    return (
        error.reason
        if isinstance(error, urllib.error.URLError) and isinstance(error.reason, BaseException)
        else error
    )


def _pause(failures: int, error: Exception) -> float:
    """Return the seconds until the next try: doubled each time, with jitter, or what the server
    asked for."""
    retry_after_s = next((float(note) for note in getattr(error, "__notes__", ()) if note), 0.0)
    return min(
        LONGEST_PAUSE_S,
        max(retry_after_s, FIRST_PAUSE_S * 2.0 ** (failures - 1) * random.uniform(0.5, 1.0)),
    )
