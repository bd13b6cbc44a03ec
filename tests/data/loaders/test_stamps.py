"""A text is read once, and again only when its files are not what they were."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from thinwire.data import prepare
from thinwire.data.corpus.text import Text, read_text
from thinwire.data.loaders import stamps, tokens
from thinwire.data.loaders.mapped import PAGE_TOKENS
from thinwire.errors import DataError

PROSE = "A paragraph that is long enough.\n\n" * 60
SPECIALS = ("<|endoftext|>",)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Each text that is read whole."""
    seen: list[str] = []

    def read(source: str, cache: Path | None = None, **more: Any) -> Text:
        seen.append(source)
        return read_text(source, cache, **more)

    monkeypatch.setattr(tokens, "read_text", read)
    return seen


@pytest.fixture
def novel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "novel.txt").write_text(PROSE)
    monkeypatch.setattr(stamps, "STABLE_S", -60.0)  # files of this test are new
    return str(tmp_path / "novel.txt")


def test_a_second_start_reads_no_text(novel: str, tmp_path: Path, reads: list[str]) -> None:
    _, first = prepare(novel, "byte", SPECIALS, tmp_path / "cache")
    _, second = prepare(novel, "byte", SPECIALS, tmp_path / "cache")
    assert reads == [novel]
    assert first.digest == second.digest
    prepare(novel, "bpe,vocab=300", SPECIALS, tmp_path / "cache")  # which must be trained on it
    assert reads == [novel] * 2


def test_a_changed_text_is_read_again_whatever_its_size_and_date_say(
    novel: str, tmp_path: Path, reads: list[str]
) -> None:
    before = os.stat(novel)
    _, first = prepare(novel, "byte", SPECIALS, tmp_path / "cache")
    Path(novel).write_text(PROSE.replace("long", "LONG"))
    os.utime(novel, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (os.stat(novel).st_size, os.stat(novel).st_mtime_ns) == (
        before.st_size,
        before.st_mtime_ns,
    )
    _, second = prepare(novel, "byte", SPECIALS, tmp_path / "cache")
    assert len(reads) == 2
    assert first.digest != second.digest


def test_a_folder_is_stamped_by_all_its_texts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stamps, "STABLE_S", -60.0)
    (tmp_path / "a.txt").write_text("a")
    first = stamps.stamp(str(tmp_path))
    (tmp_path / "picture.png").write_bytes(b"no text")
    assert stamps.stamp(str(tmp_path)) == first
    (tmp_path / "b.txt").write_text("b")
    assert stamps.stamp(str(tmp_path)) != first


def test_what_was_written_just_now_has_no_stamp(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a")
    assert stamps.stamp(str(tmp_path / "a.txt")) is None


@pytest.mark.parametrize("source", ["bundled", "hf:name"])
def test_what_has_no_files_has_no_stamp(source: str) -> None:
    assert stamps.stamp(source) is None


def test_of_several_that_start_at_once_one_reads_and_one_builds(
    novel: str, tmp_path: Path, reads: list[str]
) -> None:
    threads = [
        threading.Thread(target=prepare, args=(novel, "byte", SPECIALS, tmp_path / "cache"))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(reads) in (1, 2)  # the one that builds may be another than the one that read first


def test_a_text_that_changes_while_it_is_built_is_refused(
    novel: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare(novel, "byte", SPECIALS, tmp_path / "cache")
    stamped = stamps.stamp(novel)
    monkeypatch.setattr(
        tokens, "stamp", lambda *_: stamped
    )  # it was looked at before, and is written now
    Path(novel).write_text(PROSE * 2)
    with pytest.raises(DataError, match="was changed while it was read"):
        prepare(novel, "bpe,vocab=300", SPECIALS, tmp_path / "cache")


def test_no_room_for_stamps_is_no_error(novel: str, tmp_path: Path, reads: list[str]) -> None:
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "texts").write_text("in the way")
    for _ in range(2):
        assert prepare(novel, "byte", SPECIALS, tmp_path / "cache")[1].train_bytes
    assert reads == [novel] * 2


def test_a_large_text_lies_in_shards_and_reads_as_one(
    novel: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path(novel).write_text("".join(chr(ord("a") + i * i % 26) for i in range(5 * PAGE_TOKENS)))
    _, whole = prepare(novel, "byte", SPECIALS, tmp_path / "one")
    monkeypatch.setattr("thinwire.data.loaders.mapped.SHARD_TOKENS", PAGE_TOKENS)
    _, parts = prepare(novel, "byte", SPECIALS, tmp_path / "many")
    assert len(list((tmp_path / "many" / "tokens").glob("*/train-*.bin"))) == 5
    assert torch.equal(whole.train, parts.train)
    assert whole.digest == parts.digest
