"""Build a folder once, by the first process of any host; it is either complete or absent.

It is built beside its place under a name of its own, and moved there in one step: a process killed
at any moment leaves at most that other folder, which the next builder removes. While one builds,
the others wait for its claim (`claims`) to end; two that build at once, each taking the other for
dead, both end with the folder of the first.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from thinwire import env
from thinwire.data.claims import LOCK, PARTIAL, claimed, left_behind, partial, renewed
from thinwire.errors import DataError
from thinwire.text.words import error_text

__all__ = [
    "LOCK",
    "PARTIAL",
    "DamageError",
    "built_once",
    "cache_folder",
    "explained",
    "fetched_limit",
    "refused",
]
DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
T = TypeVar("T")


class DamageError(DataError):
    """A folder is not as it was built; the message says how."""


def cache_folder() -> Path:
    """Return the folder for what Thinwire can make again: `$THINWIRE_CACHE`, else
    `$XDG_CACHE_HOME/thinwire`, else `~/.cache/thinwire`.

    Raises:
        DataError: none of them is set and there is no home folder.
    """
    if own := env.text("THINWIRE_CACHE"):
        return Path(own)
    if shared := env.text("XDG_CACHE_HOME"):
        return Path(shared, "thinwire")
    try:
        return Path.home() / ".cache" / "thinwire"
    except RuntimeError as error:
        raise DataError(
            "there is no home folder to keep tokens in: set THINWIRE_CACHE to a folder that you "
            "may write"
        ) from error


def fetched_limit() -> int:
    """Return the most bytes of fetched data to keep: `$THINWIRE_FETCHED_GB`, or 20 GB.

    Raises:
        DataError: it is no number above 0.
    """
    text = env.text("THINWIRE_FETCHED_GB", "20")
    try:
        if (limit := int(float(text) * 1e9)) > 0:
            return limit
    except (ValueError, OverflowError):
        pass
    raise DataError(
        f"THINWIRE_FETCHED_GB={text!r} is no number of gigabytes above 0: set it to 20, say, or "
        "leave it out"
    )


def built_once(folder: Path, build: Callable[[Path], None], read: Callable[[Path], T]) -> T:
    """Return what `read` finds in `folder`; `build` fills it first if no process has done so.

    Args:
        folder: its place; the folders above it are made as needed.
        build: fills an empty folder that it is given, in another place.
        read: opens the folder, and raises `DamageError` if it is not whole; it is then built anew,
            after a warning.

    Raises:
        DataError: there is no room, or no right to write there; nothing half-built stays behind.
    """
    with explained(folder.parent):
        # 1. A whole folder needs no claim.
        if folder.exists():
            try:
                return read(folder)
            except DamageError:
                # Damage is judged again under the claim: another process may be mending it.
                pass
        folder.parent.mkdir(parents=True, exist_ok=True)
        # 2. One process at a time; what killed ones left behind is removed.
        with claimed(folder):
            for path in left_behind(folder.parent):
                _remove(path)
            if folder.exists():
                try:
                    return read(folder)
                except DamageError as damage:
                    warnings.warn(
                        f"the cache {str(folder)!r} is damaged ({damage}): it is built anew",
                        stacklevel=3,
                    )
                    # Moved aside first, so that it is never half-removed under its own name.
                    aside = partial(folder)
                    os.replace(folder, aside)
                    shutil.rmtree(aside)
            # 3. Build under a name of our own, whose time is renewed as a sign of life.
            ours = partial(folder)
            try:
                ours.mkdir()
                with renewed(ours):
                    build(ours)
                _publish(ours, folder)
            finally:
                shutil.rmtree(ours, ignore_errors=True)
            return read(folder)


def _publish(ours: Path, folder: Path) -> None:
    """Rename our build to its final name, unless another process took us for dead and was
    faster."""
    try:
        os.replace(ours, folder)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def refused(error: Exception) -> int:
    """Return the errno of an error of the operating system; 0 for other errors.

    Example:
        >>> refused(OSError(28, ""))
        28
        >>> refused(Exception("No space left on device (os error 28)"))  # as Rust raises it
        28
    """
    return (
        (error.errno or 0)
        if isinstance(error, OSError)
        else int((re.findall(r"\(os error (\d+)\)", str(error)) or ["0"])[0])
    )


@contextmanager
def explained(parent: Path) -> Iterator[None]:
    """Describe an error of the operating system in one line that says what to do."""
    try:
        yield
    except DataError:
        raise
    except Exception as error:
        # Only errors of the operating system become advice; all others are faults of ours.
        if not (number := refused(error)):
            raise
        if number in DISK_FULL:
            message = (
                f"there is no room for the tokens in {str(parent)!r} ({os.strerror(number)}): "
                "make some, or set THINWIRE_CACHE elsewhere"
            )
        else:
            message = (
                f"the cache {str(parent)!r} cannot be used ({error_text(error)}): set "
                "THINWIRE_CACHE to a folder that you may write"
            )
        raise DataError(message) from error
