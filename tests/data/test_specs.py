"""`word,key=value`: what is read, and what the error suggests."""

from __future__ import annotations

from pathlib import Path

import pytest

from thinwire.data._specs import absent, extra, path_from, settings
from thinwire.errors import DataError


def test_settings_follow_a_comma() -> None:
    assert settings("bpe,vocab=4096", ["vocab"]) == ("bpe", {"vocab": "4096"})
    assert settings("byte", []) == ("byte", {})


@pytest.mark.parametrize(
    ("spec", "error"),
    [
        ("bpe,vocap=3", "bpe has no setting 'vocap'; did you mean 'vocab'?"),
        ("bpe,vocab", "expected key=value, got 'vocab'"),
        ("bpe,vocab=1,vocab=2", "vocab is given twice"),
    ],
)
def test_wrong_settings_are_refused(spec: str, error: str) -> None:
    with pytest.raises(DataError, match=error.replace("?", r"\?")):
        settings(spec, ["vocab"])


def test_a_path_that_is_absent_is_described(tmp_path: Path) -> None:
    (tmp_path / "novel.txt").write_text("x")
    assert "did you mean 'novel.txt'" in absent(tmp_path / "novle.txt")
    assert "does not exist" in absent(tmp_path / "no" / "novel.txt")
    with pytest.raises(DataError, match="cannot be read"):
        path_from("x" * 5000, "text")


def test_an_optional_package_is_named() -> None:
    with pytest.raises(DataError, match=r"pip install 'thinwire\[hub\]'"), extra("a set", "hub"):
        raise ImportError("no module")
