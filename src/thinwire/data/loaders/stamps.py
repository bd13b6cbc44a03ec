"""Detect whether a text has changed without reading it: by size, times and number of its files.

The kernel sets a file's time of change itself at every write, and no program can set it back. A
text whose newest file is younger than `STABLE_S` is not stamped: a write within the same tick of
the clock would go unseen.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

from thinwire.data._specs import path_from
from thinwire.data.claims import partial
from thinwire.data.corpus.files import text_files
from thinwire.data.remote.stores import files_at, is_address, store_of

STABLE_S = 2.0
FORMAT = 1


def stamp(source: str, hosts: Collection[str] = ()) -> str | None:
    """Return sizes and times of a text's files; `None` for a text without files (bundled, a
    dataset), or one that has just changed.

    Of an address it is what its server says of each file: the size, and the tag or date that
    changes with its content; `None` where it tells neither; `hosts` are others that it may lead to.

    Raises:
        DataError: there is no such text.
    """
    if source == "bundled" or source.startswith("hf:"):
        return None
    if is_address(source):
        return _stamp_elsewhere(source, hosts)
    path = path_from(source, "text")
    if not path.exists():
        return None
    # The host's name counts: inode and device numbers mean nothing on another one.
    seen: list[list[str | int]] = []
    for file in text_files(path):
        stat = file.stat()
        seen.append(
            [
                str(file.resolve()),
                stat.st_size,
                stat.st_mtime_ns,
                stat.st_ctime_ns,
                stat.st_ino,
                stat.st_dev,
            ]
        )
    return _digest([os.uname().nodename, seen]) if seen and _is_stable(seen) else None


def _stamp_elsewhere(source: str, hosts: Collection[str]) -> str | None:
    store = store_of(source, hosts)
    seen = [(url, store.about(url)) for url in files_at(source, store, hosts)]
    return (
        _digest([[url, about.size, about.version] for url, about in seen])
        if all(about.version for _, about in seen)
        else None
    )


def _digest(seen: Sequence[object]) -> str:
    return hashlib.sha256(json.dumps([FORMAT, *seen]).encode()).hexdigest()


def _is_stable(seen: list[list[str | int]]) -> bool:
    newest = max(max(int(modified), int(changed)) for _, _, modified, changed, *_ in seen)
    return time.time_ns() - newest > STABLE_S * 1e9


def remembered(folder: Path, stamped: str) -> str | None:
    """Return the digest of the text that had this stamp."""
    try:
        digest = (folder / stamped).read_text(encoding="ascii").strip()
    except OSError:
        return None
    return digest if len(digest) == 64 else None


def remember(folder: Path, stamped: str, digest: str, still: Callable[[], str | None]) -> None:
    """Save the digest of the text that was read, if its stamp is the same as before it was read."""
    if still() != stamped:
        return
    folder.mkdir(parents=True, exist_ok=True)
    ours = partial(folder / stamped)
    ours.write_text(digest + "\n", encoding="ascii")
    os.replace(ours, folder / stamped)
