"""A folder that is built once, by whichever process comes first, and is either whole or not there.

It is built under a lock, beside its place and under another name, and moved there in one step. A process killed at any moment leaves
at most that other folder, which the next builder removes: whoever holds the lock knows that its owner is gone. The kernel lets go of
a lock with the process that held it.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import shutil
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from thinwire.errors import DataError
from thinwire.words import told

PARTIAL, LOCK = ".partial", ".lock"
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
T = TypeVar("T")


class DamageError(DataError):
    """A folder that is not as it was built; the message says in what."""


def cache_folder() -> Path:
    """Where Thinwire keeps what it can make again: `$THINWIRE_CACHE`, else `$XDG_CACHE_HOME/thinwire`, else `~/.cache/thinwire`.

    Raises:
        DataError: none of them is set and there is no home folder.
    """
    if own := os.environ.get("THINWIRE_CACHE"):
        return Path(own)
    if shared := os.environ.get("XDG_CACHE_HOME"):
        return Path(shared, "thinwire")
    try:
        return Path.home() / ".cache" / "thinwire"
    except RuntimeError as error:
        raise DataError("there is no home folder to keep tokens in: set THINWIRE_CACHE to a folder that you may write") from error


def built_once(folder: Path, build: Callable[[Path], None], read: Callable[[Path], T]) -> T:
    """What `read` finds in `folder`, after `build` has filled it if nobody did before.

    Args:
        folder: its place; the folders above it are made as needed.
        build: fills an empty folder that it is given, in another place.
        read: opens the folder, and raises `DamageError` if it is not whole; it is then built anew, after a warning.

    Raises:
        DataError: there is no room, or no right to write there; nothing half-built stays behind.
    """
    with _explained(folder.parent):
        if folder.exists():
            try:
                return read(folder)
            except DamageError:
                pass  # to be asked again under the lock: another process may be mending it
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _locked(folder):
            _sweep(folder)
            if folder.exists():
                try:
                    return read(folder)
                except DamageError as damage:
                    warnings.warn(f"the cache {str(folder)!r} is damaged ({damage}): it is built anew", stacklevel=3)
                    os.replace(folder, _partial(folder))  # never half-removed under its own name
                    shutil.rmtree(_partial(folder))
            try:
                _partial(folder).mkdir()
                build(_partial(folder))
                os.replace(_partial(folder), folder)
            finally:
                shutil.rmtree(_partial(folder), ignore_errors=True)
            return read(folder)


def _partial(folder: Path) -> Path:
    return folder.with_name(folder.name + PARTIAL)


@contextmanager
def _locked(folder: Path, wait: bool = True) -> Iterator[bool]:
    """The lock of a folder, held; False if it is another's and we do not wait. Its file stays: removing it would let two hold it."""
    handle = os.open(folder.with_name(folder.name + LOCK), os.O_RDONLY | os.O_CREAT, 0o666)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
        else:
            yield True
    finally:
        os.close(handle)


def _sweep(folder: Path) -> None:
    """Remove what builders left behind that were killed: of this folder, whose lock we hold, and of those that nobody builds now."""
    for partial in folder.parent.glob("*" + PARTIAL):
        if partial == _partial(folder):
            shutil.rmtree(partial)
            continue
        with _locked(partial.with_name(partial.name.removesuffix(PARTIAL)), wait=False) as ours:
            if ours:
                shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def _explained(parent: Path) -> Iterator[None]:
    """What the operating system refused, in one line that says what to do."""
    try:
        yield
    except DataError:
        raise
    except Exception as error:
        # Libraries in Rust raise a bare Exception that ends in "(os error 28)".
        number = error.errno if isinstance(error, OSError) else int((re.findall(r"\(os error (\d+)\)", str(error)) or ["0"])[0])
        if not number:
            raise
        if number in NO_ROOM:
            message = (
                f"there is no room for the tokens in {str(parent)!r} ({os.strerror(number)}): make some, or set THINWIRE_CACHE elsewhere"
            )
        else:
            message = f"the cache {str(parent)!r} cannot be used ({told(error)}): set THINWIRE_CACHE to a folder that you may write"
        raise DataError(message) from error
