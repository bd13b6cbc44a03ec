"""Whether a text is still the one that was read, known without reading it: by the size, times and
number of each of its files.

The kernel sets a file's time of change itself at every write, and no program can set it back. A
text whose newest file is younger than `SETTLED_S` is not stamped: a write within the same tick of
the clock would go unseen.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

from thinwire.data._asked import path_from
from thinwire.data.claims import partial
from thinwire.data.corpus.files import text_files
from thinwire.data.remote.stores import files_at, is_address, store_of

SETTLED_S = 2.0
FORMAT = 1


def stamp(source: str, hosts: Collection[str] = ()) -> str | None:
    """What the files of a text look like from outside; `None` of one without files (bundled, a
    dataset), or that has just changed.

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
    seen: list[list[str | int]] = []
    for file in text_files(path):
        found = file.stat()
        seen.append(
            [
                str(file.resolve()),
                found.st_size,
                found.st_mtime_ns,
                found.st_ctime_ns,
                found.st_ino,
                found.st_dev,
            ]
        )
    return _digest([os.uname().nodename, seen]) if seen and _settled(seen) else None


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


def _settled(seen: list[list[str | int]]) -> bool:
    newest = max(max(int(modified), int(changed)) for _, _, modified, changed, *_ in seen)
    return time.time_ns() - newest > SETTLED_S * 1e9


def known(folder: Path, stamped: str) -> str | None:
    """The digest of the text that had this stamp."""
    try:
        digest = (folder / stamped).read_text(encoding="ascii").strip()
    except OSError:
        return None
    return digest if len(digest) == 64 else None


def remember(folder: Path, stamped: str, digest: str, still: Callable[[], str | None]) -> None:
    """Note the digest of the text that was read, if it still has the stamp that it had before it
    was read."""
    if still() != stamped:
        return
    folder.mkdir(parents=True, exist_ok=True)
    ours = partial(folder / stamped)
    ours.write_text(digest + "\n", encoding="ascii")
    os.replace(ours, folder / stamped)
