"""Datasets of the hub, or folders in its layout: their splits, fields and errors."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from thinwire.data import Text, read_text
from thinwire.errors import DataError


@pytest.mark.usefixtures("datasets_cache")
def test_a_dataset_of_one_split_is_cut(tmp_path: Path) -> None:
    (tmp_path / "lines").mkdir()
    (tmp_path / "lines" / "train.jsonl").write_text(
        "".join(json.dumps({"story": f"story {number}"}) + "\n" for number in range(200))
    )
    text = read_text(f"hf:{tmp_path / 'lines'},field=story")
    assert (len(text.train), next(iter(text.held))) == (190, b"story 19")


def test_a_missing_package_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(
        DataError, match=r"needs a package that cannot be imported .*pip install 'thinwire\[hub\]'"
    ):
        read_text("hf:nobody/nothing")


def parquet(path: Path, **columns: list[object]) -> None:
    from pyarrow import parquet as pq
    from pyarrow import table

    path.parent.mkdir(exist_ok=True)
    pq.write_table(table(columns), path)


@pytest.mark.usefixtures("datasets_cache")
def test_a_dataset_holds_out_its_own_split(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    parquet(folder / "train.parquet", text=["one", "", "two", None, "three"], label=[1, 2, 3, 4, 5])
    parquet(folder / "validation.parquet", text=["four", "five"], label=[6, 7])
    source = f"hf:{folder}"
    assert read_text(source) == Text(source, (b"one", b"two", b"three"), (b"four", b"five"))
    assert read_text(f"{source},split=train[:1]").train == (b"one",)
    asked = read_text(f"{source},split=validation")  # which cannot be held out of itself
    assert (asked.train, asked.held) == ((b"fou", b"fiv"), (b"r", b"e"))
    with pytest.raises(
        DataError, match=r"has no field 'txt'; did you mean 'text'\? Say field= one of: text, label"
    ):
        read_text(f"{source},field=txt")
    with pytest.raises(DataError, match=r"the field 'label' of the dataset .* holds int, not text"):
        read_text(f"{source},field=label")
    with pytest.raises(
        DataError, match=r"cannot be loaded .*check its name, config and split"
    ) as caught:
        read_text(f"{source},split=trian")
    assert "\n" not in str(caught.value)
