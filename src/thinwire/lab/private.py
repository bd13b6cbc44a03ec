"""Open this user's folder for run-time files, so that no other user can replace or redirect them.

Every user of the machine may write in the shared temporary folder. So a folder or file there is
used only after it is open and the kernel has confirmed three things: this user owns it, nobody
else may write it, and no symbolic link led to it.
"""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from thinwire import env
from thinwire.errors import LabError

FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
FILE = os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK  # else opening a planted FIFO would wait


def folder() -> Path:
    """Return where this user's run-time files go: below XDG_RUNTIME_DIR where that is private, else
    in the temporary folder."""
    runtime = env.text("XDG_RUNTIME_DIR")
    if (
        runtime and os.path.isabs(runtime) and _whose(runtime) == (os.geteuid(), 0o700)
    ):  # after `sudo` it may be another user's
        return Path(runtime) / "thinwire"
    return Path(tempfile.gettempdir()) / f"thinwire-{os.geteuid()}"


@contextmanager
def opened(make: bool) -> Iterator[int]:
    """Open the folder; yield its descriptor, for calls with `dir_fd`.

    Args:
        make: make it where there is none.

    Raises:
        FileNotFoundError: there is none, and it is not to be made.
        LabError: it cannot be made, or is not this user's alone.
    """
    path = folder()
    try:
        if make:
            path.mkdir(mode=0o700, exist_ok=True)
        fd = os.open(path, FOLDER)
    except FileNotFoundError:
        if make:
            raise _refused(path, "the folder above it does not exist") from None
        raise
    except OSError as error:
        why = (
            "a symbolic link"
            if path.is_symlink()
            else "no folder"
            if path.exists() and not path.is_dir()
            else ""
        )
        raise _refused(path, f"it is {why}" if why else str(error.strerror)) from error
    # Checked on the open folder, not on its name: nobody can exchange it in between.
    try:
        about = os.fstat(fd)
        if about.st_uid != os.geteuid():
            raise _refused(
                path, f"it belongs to user {about.st_uid}, and this is user {os.geteuid()}"
            )
        if about.st_mode & 0o022:
            raise _refused(
                path, f"other users may write in it (mode {stat.S_IMODE(about.st_mode):o})"
            )
        yield fd
    finally:
        os.close(fd)


def own_file(name: str, flags: int, at: int) -> int:
    """Open a file of a folder that is `opened`; return its descriptor.

    Args:
        name: of the file.
        flags: as `os.open` takes them; links are never followed.
        at: the folder's descriptor.

    Raises:
        OSError: it cannot be opened, or is a link.
        PermissionError: it is no plain file of this user.
    """
    fd = os.open(name, flags | FILE, 0o600, dir_fd=at)
    about = os.fstat(fd)
    if not stat.S_ISREG(about.st_mode) or about.st_uid != os.geteuid() or about.st_mode & 0o022:
        os.close(fd)
        raise PermissionError(f"{name} is not a plain file that only this user may write")
    return fd


def _whose(path: str) -> tuple[int, int] | None:
    """Return the owner and mode of a folder; None where there is none, or a link stands there."""
    try:
        about = os.lstat(path)
    except OSError:
        return None
    return (about.st_uid, stat.S_IMODE(about.st_mode)) if stat.S_ISDIR(about.st_mode) else None


def _refused(path: Path, why: str) -> LabError:
    return LabError(
        f"labs of this user cannot be noted in {path}: {why}. Another user may have put it there "
        "to lead this one astray: "
        "remove it (as its owner or root), or set TMPDIR to a folder of your own"
    )
