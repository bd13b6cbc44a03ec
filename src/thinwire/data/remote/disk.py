"""Keep fetched data on a disk up to a size; the least recently used goes first.

An entry is one file, named by a digest of its key, that ends with a checksum of its bytes; a
damaged one is fetched again. Any number of processes may use a cache at once: of those that want
the same entry one fetches. What a reader holds stays readable when it is evicted.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import mmap
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

from thinwire.data.claims import LOCK, PARTIAL, claimed, held_elsewhere, left_behind, partial
from thinwire.errors import DataError
from thinwire.text.words import error_text

FOOTER = struct.Struct("<4sIQ")  # MAGIC, CRC-32 of the bytes, how many there are
MAGIC = b"tw01"
LIMIT_BYTES = 20 * 10**9
DISK_FULL = (errno.ENOSPC, errno.EDQUOT)


class DiskCache:
    """Bytes by key, on disk.

    Args:
        folder: where; made when needed.
        limit_bytes: of all entries together.

    Raises:
        DataError: a limit below 1.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     cache = DiskCache(Path(folder), limit_bytes=1000)
        ...     first = bytes(cache.get("a", lambda: b"fetched"))
        ...     first, bytes(cache.get("a", lambda: b"never called"))
        (b'fetched', b'fetched')
    """

    def __init__(self, folder: Path, limit_bytes: int = LIMIT_BYTES) -> None:
        if limit_bytes < 1:
            raise DataError(
                f"a cache of {limit_bytes} bytes holds nothing; give a limit of at least a few "
                "blocks"
            )
        self.folder, self.limit_bytes = folder, limit_bytes

    def get(self, key: str, fetch: Callable[[], bytes]) -> memoryview:
        """Return the bytes of a key, mapped into memory; fetch them if they are not there.

        Raises:
            DataError: whatever `fetch` raises; no room; or one entry larger than the limit.
        """
        path = self._path(key)
        try:
            if (opened := _opened(path)) is not None:
                return opened
            self.folder.mkdir(parents=True, exist_ok=True)
            with claimed(path):
                # An entry may have come while we waited for the claim: look again.
                if (opened := _opened(path)) is not None:
                    return opened
                data = fetch()
                if len(data) > self.limit_bytes:
                    raise DataError(
                        f"{len(data)} bytes were fetched at once, and the cache may hold "
                        f"{self.limit_bytes}: raise its limit"
                    )
                self._put(path, data)
            # Mapped, so that it is the kernel's to drop and to read again.
            return _opened(path) or memoryview(data)
        except OSError as error:
            if isinstance(error, DataError):
                raise
            raise DataError(
                f"the cache {str(self.folder)!r} cannot be used ({error_text(error)}): set "
                "THINWIRE_CACHE elsewhere"
            ) from error

    def fetched_elsewhere(self, key: str) -> bool:
        """Return whether another host that shares this folder is fetching the entry now."""
        return held_elsewhere(self._path(key))

    def _path(self, key: str) -> Path:
        return self.folder / hashlib.sha256(key.encode()).hexdigest()[:32]

    def used_bytes(self) -> int:
        """Return the bytes of all entries."""
        return sum(size for _, size, _ in self._entries())

    def _put(self, path: Path, data: bytes) -> None:
        # Once more after a full disk, with half of the cache deleted: the disk may be smaller than
        # the limit.
        for retry in (True, False):
            ours = partial(path)
            try:
                with ours.open("wb") as file:
                    file.write(data)
                    file.write(FOOTER.pack(MAGIC, zlib.crc32(data), len(data)))
                # One at a time, or several, each finding room for one, would go beyond the limit.
                with claimed(self.folder / "room"):
                    self._free_space(len(data))
                    os.replace(ours, path)
                return
            except OSError as error:
                ours.unlink(missing_ok=True)
                if error.errno not in DISK_FULL:
                    raise
                if not retry or not self._free_space(self.limit_bytes // 2):
                    raise DataError(
                        f"there is no room in {str(self.folder)!r} ({os.strerror(error.errno)}): "
                        "make some, or set THINWIRE_CACHE elsewhere"
                    ) from error

    def _free_space(self, wanted: int) -> int:
        """Delete entries until the wanted bytes fit; return how many were deleted."""
        for path in left_behind(self.folder):
            path.unlink(missing_ok=True)
        entries = sorted(self._entries())
        used, gone = sum(size for _, size, _ in entries), 0
        for _, size, path in entries:
            if used + wanted <= self.limit_bytes:
                break
            path.unlink(missing_ok=True)
            used, gone = used - size, gone + 1
        return gone

    def _entries(self) -> list[tuple[int, int, Path]]:
        """Return the last use, the size and the path of each entry."""
        opened = []
        with contextlib.suppress(FileNotFoundError), os.scandir(self.folder) as each:
            for entry in each:
                if not entry.name.endswith((LOCK, PARTIAL)):
                    with contextlib.suppress(
                        FileNotFoundError
                    ):  # another process has just evicted it
                        about = entry.stat()
                        opened.append(
                            (about.st_mtime_ns, about.st_size - FOOTER.size, Path(entry.path))
                        )
        return opened


def _opened(path: Path) -> memoryview | None:
    """Return the bytes of an entry; `None` if it is absent or damaged."""
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size < FOOTER.size:
                return None
            whole = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        # The time of use decides what goes first.
        with contextlib.suppress(OSError):
            os.utime(path)
    except FileNotFoundError:
        return None
    # A file that was cut or changed fails its footer: it counts as absent and is fetched again.
    data = whole[: size - FOOTER.size]
    return (
        data
        if FOOTER.unpack(whole[size - FOOTER.size :]) == (MAGIC, zlib.crc32(data), len(data))
        else None
    )
