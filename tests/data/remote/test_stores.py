"""Texts that lie elsewhere: on a server, in an object store; the same documents as on the disk,
fetched once."""

from __future__ import annotations

import gzip
import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.data.server import Site, cut, served, status
from thinwire.data import Reader, SetReader, Streamed, prepare, read_text, tokenizer_from, write_set
from thinwire.data.corpus.text import Text
from thinwire.data.remote.disk import DiskCache
from thinwire.data.remote.http import About
from thinwire.data.remote.stores import RemoteFile, store_of
from thinwire.errors import DataError

SPECIALS = ("<|endoftext|>",)
TEXTS = [f"{number}: " + "A paragraph that is long enough.\n\n" * 60 for number in range(3)]
LINES = "".join(json.dumps({"text": text}) + "\n" for text in TEXTS).encode()


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    zstandard = pytest.importorskip("zstandard")
    pq, pa = pytest.importorskip("pyarrow.parquet"), pytest.importorskip("pyarrow")
    pq.write_table(pa.table({"text": TEXTS}), tmp_path / "a.parquet")
    files = {
        "/a.jsonl": LINES,
        "/a.jsonl.gz": gzip.compress(LINES),
        "/a.jsonl.zst": zstandard.ZstdCompressor().compress(LINES),
        "/a.parquet": (tmp_path / "a.parquet").read_bytes(),
        "/notes/a.txt": TEXTS[0].encode(),
        "/notes/more/b.jsonl": LINES,
        "/notes/files.txt": b"a.txt\nmore/b.jsonl\n\n",
    }
    with served(Site(files)) as up:
        yield up


def same(text: Text) -> bool:
    here = Text("here", *_halves())
    return (text.train, text.held) == (here.train, here.held)


def _halves() -> tuple[tuple[bytes, ...], tuple[bytes, ...]]:
    from thinwire.data.corpus.held import held_out

    return held_out([text.encode() for text in TEXTS])


@pytest.mark.parametrize(
    "name", ["a.jsonl", "a.jsonl.gz", "a.jsonl.zst", "a.parquet", "a.jsonl?key=1"]
)
def test_a_file_on_a_server_is_the_file(site: Site, tmp_path: Path, name: str) -> None:
    site.faults = [None, cut(0.3), status(503)]
    assert same(read_text(f"{site.url}/{name}", tmp_path / "cache"))


def test_a_folder_on_a_server_is_what_its_list_says(site: Site, tmp_path: Path) -> None:
    assert len(read_text(f"{site.url}/notes/", tmp_path).train) == 4
    site.files["/notes/files.txt"] = b"\n"
    with pytest.raises(
        DataError, match=r"holds no text files; put some there, and their names in files.txt"
    ):
        read_text(f"{site.url}/notes/", tmp_path)
    with pytest.raises(DataError, match="404"):
        read_text(f"{site.url}/other/", tmp_path)


def test_a_second_start_asks_only_whether_it_has_changed(site: Site, tmp_path: Path) -> None:
    url = f"{site.url}/a.jsonl"
    _, first = prepare(url, "byte", SPECIALS, tmp_path)
    before = site.sent
    _, second = prepare(url, "byte", SPECIALS, tmp_path)
    assert site.sent - before <= 2, "a byte to hear its size and tag"
    assert first.digest == second.digest
    site.files["/a.jsonl"], site.etag = LINES.replace(b"long", b"LONG"), '"2"'
    assert prepare(url, "byte", SPECIALS, tmp_path)[1].digest != first.digest


def test_a_server_that_tells_no_version_is_read_again(site: Site, tmp_path: Path) -> None:
    site.etag = ""
    url = f"{site.url}/a.jsonl"
    _, first = prepare(url, "byte", SPECIALS, tmp_path)
    assert prepare(url, "byte", SPECIALS, tmp_path)[1].digest == first.digest


def test_binary_data_on_a_server_is_refused(site: Site, tmp_path: Path) -> None:
    site.files["/b.txt"] = b"\xff\xfe"
    with pytest.raises(DataError, match=r"b.txt' is not text: byte 0xff"):
        read_text(f"{site.url}/b.txt", tmp_path)


@pytest.fixture
def bucket() -> Iterator[Any]:
    fsspec = pytest.importorskip("fsspec")
    system = fsspec.filesystem("memory")
    system.store.clear()
    yield system
    system.store.clear()


def test_object_stores_are_read_through_fsspec(site: Site, bucket: Any, tmp_path: Path) -> None:
    for name in ("a.jsonl", "a.jsonl.zst", "a.parquet"):
        bucket.pipe(f"/bucket/{name}", site.files[f"/{name}"])
    bucket.pipe("/bucket/picture.png", b"no text")
    for name in ("a.jsonl", "a.jsonl.zst", "a.parquet"):
        assert same(read_text(f"memory://bucket/{name}", tmp_path / "cache" / name))
    assert len(read_text("memory://bucket/", tmp_path / "all").train) == 9
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "a.jsonl").write_bytes(LINES)
    assert same(read_text(f"file://{tmp_path}/here/", tmp_path / "cache"))


def test_a_set_in_an_object_store_is_read_like_one_here(bucket: Any, tmp_path: Path) -> None:
    text = Text("letters", tuple(f"{at} and so on".encode() * 9 for at in range(60)), (b"held",))
    write_set(tmp_path / "set", text, tokenizer_from("byte", text, SPECIALS), 4096)
    bucket.put(f"{tmp_path}/set/", "/bucket/set/", recursive=True)
    place, here = (
        Streamed(SetReader(f"{where}/set/", tmp_path / "cache", 10**9), Reader(4), length=33)
        for where in ("memory://bucket", tmp_path)
    )
    assert all(place.at(step).equal(here.at(step)) for step in range(20))
    assert (
        place.source.tokenizer(SPECIALS).get_vocab() == here.source.tokenizer(SPECIALS).get_vocab()
    )
    place.close()
    here.close()


def test_an_object_that_changes_while_it_is_read_is_refused(bucket: Any, tmp_path: Path) -> None:
    bucket.pipe("/bucket/a.txt", b"text " * 1000)
    with RemoteFile(
        "memory://bucket/a.txt", store_of("memory://bucket/a.txt"), DiskCache(tmp_path), 1000
    ) as file:
        assert file.read(1000) == b"text " * 200
        bucket.pipe("/bucket/a.txt", b"TEXT " * 1000)
        with pytest.raises(DataError, match=r"has changed while it was read: start again"):
            file.read(1000)


def test_a_store_with_one_connection_is_asked_by_one_thread_at_a_time(
    bucket: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As ftp is: its answers would go to whoever listens."""
    bucket.pipe("/bucket/a.txt", b"text " * 1000)
    whole, inside, most = bucket.cat_file, [], []

    def cat_file(*given: Any, **more: Any) -> Any:
        inside.append(1)
        most.append(len(inside))
        time.sleep(0.01)
        inside.pop()
        return whole(*given, **more)

    monkeypatch.setattr(
        type(bucket), "cat_file", lambda _, *given, **more: cat_file(*given, **more)
    )
    store = store_of("memory://bucket/a.txt")
    with ThreadPoolExecutor(4) as pool:
        list(
            pool.map(
                lambda at: store.read("memory://bucket/a.txt", at, at + 5, About(5000, "")),
                range(8),
            )
        )
    assert most == [1] * 8


def test_names_with_spaces_are_addresses_too(site: Site, tmp_path: Path) -> None:
    site.files |= {
        "/named/files.txt": "my file é.jsonl\n".encode(),
        "/named/my%20file%20%C3%A9.jsonl": LINES,
    }
    assert same(read_text(f"{site.url}/named/", tmp_path))


@pytest.mark.parametrize(
    ("url", "line"),
    [
        ("memory://nothing/a.txt", "cannot be read"),
        ("memory://nothing/", "holds no text files; put some there$"),
        ("gopher://host/a.txt", "of no kind that fsspec opens"),
    ],
)
def test_what_is_not_there_is_one_line(bucket: Any, tmp_path: Path, url: str, line: str) -> None:
    with pytest.raises(DataError, match=line):
        read_text(url, tmp_path)
