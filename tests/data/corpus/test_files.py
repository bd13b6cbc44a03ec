"""Documents of files in every format."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from tests.data.corpus.test_text import PROSE, TEXTS, lines_of, write_parquet, zst
from thinwire.data.corpus import files
from thinwire.data.corpus.files import file_documents, text_files


def test_every_format_holds_the_same_documents(tmp_path: Path) -> None:
    frames = b"".join(
        zst(lines_of([text])) for text in TEXTS
    )  # as pzstd and others write: a frame for each part
    (tmp_path / "a.jsonl").write_bytes(lines_of(TEXTS))
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(lines_of(TEXTS)))
    (tmp_path / "c.jsonl.zst").write_bytes(zst(lines_of(TEXTS)))
    (tmp_path / "d.JSONL.ZST").write_bytes(frames)
    write_parquet(tmp_path / "e.parquet", id=[1, 2, 3, 4], text=[*TEXTS, None])
    for path in sorted(tmp_path.iterdir()):
        assert [document.decode() for document in file_documents(path)] == TEXTS, path.name
    assert len(
        [document for path in text_files(tmp_path) for document in file_documents(path)]
    ) == 5 * len(TEXTS)
    (tmp_path / "a.txt.zst").write_bytes(zst(PROSE.encode()))
    assert [document.decode() for document in file_documents(tmp_path / "a.txt.zst")] == [PROSE]


@pytest.mark.parametrize("block", [1, 7, 1 << 20])
def test_lines_do_not_ask_how_they_were_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int
) -> None:
    monkeypatch.setattr(files, "CHUNK", block)
    (tmp_path / "a.jsonl").write_bytes(
        b"\n" + lines_of(["é", "b"]) + b"\n  \n" + lines_of(["c"]).strip()
    )
    assert [document.decode() for document in file_documents(tmp_path / "a.jsonl")] == [
        "é",
        "b",
        "c",
    ]
