"""What several test files of this folder share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.data.server import Site, served
from thinwire.data import tokenizer_from
from thinwire.data.corpus.text import Text
from thinwire.data.loaders.sets import write_set

PROSE = "A paragraph that is long enough, naïvely.\n\n" * 60


@pytest.fixture
def novel(tmp_path: Path) -> str:
    (tmp_path / "text").mkdir()
    for name in "ab":
        (tmp_path / "text" / f"{name}.txt").write_text(PROSE + name)
    return str(tmp_path / "text")


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    return tmp_path / "cache"


SPECIALS = ("<|endoftext|>", "<pad>")


# Every three letters in a row are unlike all others, so that a window tells where it began.
LETTERS = "".join(
    f"{chr(97 + high)}{chr(97 + mid)}{chr(65 + low)}"
    for high in range(20)
    for mid in range(26)
    for low in range(26)
)


TEXT = Text(
    "letters",
    tuple(LETTERS[at : at + 4000].encode() for at in range(0, len(LETTERS), 4000)),
    (b"held out", b"and this"),
)


SHARD = 1024  # bytes, 512 tokens


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sets") / "packed"
    write_set(folder, TEXT, tokenizer_from("byte", TEXT, SPECIALS), SHARD)
    return folder


@pytest.fixture
def site(packed: Path) -> Iterator[Site]:
    with served(Site(folder=packed)) as up:
        yield up


@pytest.fixture
def datasets_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()
