"""A folder is built once, and is whole or not there."""

from __future__ import annotations

from pathlib import Path

import pytest

from thinwire.data.cache import DamageError, built_once, cache_folder, fetched_limit
from thinwire.errors import DataError


def read(folder: Path) -> str:
    text = (folder / "text").read_text()
    if text == "damaged":
        raise DamageError("text is damaged")
    return text


def test_it_is_built_once(tmp_path: Path) -> None:
    built = []

    def build(folder: Path) -> None:
        built.append(folder)
        (folder / "text").write_text("whole")

    assert [built_once(tmp_path / "a", build, read) for _ in range(3)] == ["whole"] * 3
    assert len(built) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_build_that_fails_leaves_nothing(tmp_path: Path) -> None:
    def build(folder: Path) -> None:
        (folder / "text").write_text("half")
        raise ValueError("failed")

    with pytest.raises(ValueError, match="failed"):
        built_once(tmp_path / "a", build, read)
    assert not list(tmp_path.iterdir())


def test_a_damaged_folder_is_built_anew(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "text").write_text("damaged")
    with pytest.warns(UserWarning, match="is damaged .*: it is built anew"):
        assert (
            built_once(tmp_path / "a", lambda f: (f / "text").write_text("whole"), read) == "whole"
        )  # type: ignore[arg-type, return-value]


def test_the_environment_chooses_folder_and_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("THINWIRE_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path
    monkeypatch.setenv("THINWIRE_FETCHED_GB", "1.5")
    assert fetched_limit() == 1_500_000_000
    monkeypatch.setenv("THINWIRE_FETCHED_GB", "none")
    with pytest.raises(DataError, match="THINWIRE_FETCHED_GB"):
        fetched_limit()
