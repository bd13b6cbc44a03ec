"""Records: samples of any kind in the same orders, cached once and whole; and the packaged sets, from
packages made here."""

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
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.data.corpus.test_fetch import make_deb
from thinwire.data import Prefetch, Reader, packaged
from thinwire.data.corpus.packages import Package, apt_is_here
from thinwire.data.loaders.order import striped
from thinwire.data.loaders.records import Ragged, cached, in_memory
from thinwire.errors import DataError


def sounds(count: int) -> list[np.ndarray]:
    return [np.arange(number, 2 * number + 1, dtype=np.int16) for number in range(count)]


def columns(count: int = 30) -> dict[str, object]:
    return {
        "pixels": np.arange(count * 4, dtype=np.uint8).reshape(count, 2, 2),
        "label": np.arange(count),
        "sound": sounds(count),
    }


@settings(deadline=None, max_examples=30)
@given(
    world=st.integers(1, 3),
    batch=st.integers(1, 5),
    step=st.integers(0, 50),
    seed=st.integers(0, 9),
    shards=st.booleans(),
)
def test_ranks_together_read_every_sample_once_an_epoch(
    world: int, batch: int, step: int, seed: int, shards: bool
) -> None:
    records = in_memory(columns())  # type: ignore[arg-type]
    order = striped.over([10, 20], seed, 4) if shards else None
    ranks = [
        records.batches(Reader(batch, rank, world), seed=seed, order=order) for rank in range(world)
    ]
    labels = torch.cat([rank.at(step)["label"] for rank in ranks])
    alone = records.batches(Reader(world * batch), seed=seed, order=order).at(step)["label"]
    assert sorted(labels.tolist()) == sorted(alone.tolist())
    epoch = torch.cat(
        [records.batches(Reader(5), seed=seed, order=order).at(each)["label"] for each in range(6)]
    )
    assert sorted(epoch.tolist()) == list(range(30))


def test_a_sample_is_the_same_in_every_column(tmp_path: Path) -> None:
    for records in (in_memory(columns()), cached("test", "1", columns, tmp_path)):  # type: ignore[arg-type]
        with Prefetch(records.batches(Reader(4)).at, stop=5) as ahead:
            batch = ahead.at(3)
        for at, label in enumerate(batch["label"].tolist()):
            assert batch["pixels"][at].flatten().tolist() == [
                (4 * label + each) % 256 for each in range(4)
            ]
            assert batch["sound_length"][at] == label + 1
            assert batch["sound"][at, : label + 1].tolist() == sounds(30)[label].tolist()
            assert not batch["sound"][at, label + 1 :].any()


def test_what_is_kept_is_made_once_and_the_same(tmp_path: Path) -> None:
    made = []
    first = cached("test", "1", lambda: made.append(1) or columns(), tmp_path)  # type: ignore[func-returns-value, arg-type, return-value]
    second = cached("test", "1", lambda: made.append(1) or columns(), tmp_path)  # type: ignore[func-returns-value, arg-type, return-value]
    assert len(made) == 1
    assert first.digest == second.digest == in_memory(columns()).digest  # type: ignore[arg-type]
    assert isinstance(second.columns["sound"], Ragged)
    assert cached("test", "2", columns, tmp_path).digest == first.digest  # type: ignore[arg-type]
    changed = columns() | {"label": np.arange(30)[::-1]}
    assert cached("other", "1", lambda: changed, tmp_path).digest != first.digest  # type: ignore[arg-type, return-value]


@pytest.mark.parametrize("victim", ["label.npy", "sound.values.npy", "meta.json"])
@pytest.mark.parametrize("damage", ["cut", "flipped", "removed"])
def test_a_damaged_column_is_made_anew_after_a_warning(
    tmp_path: Path, victim: str, damage: str
) -> None:
    digest = cached("test", "1", columns, tmp_path).digest  # type: ignore[arg-type]
    [path] = tmp_path.glob(f"records/*/{victim}")
    data = path.read_bytes()
    if damage == "removed":
        path.unlink()
    else:
        path.write_bytes(
            data[: len(data) // 2]
            if damage == "cut"
            else data[:-3] + bytes([data[-3] ^ 1]) + data[-2:]
        )
    with pytest.warns(UserWarning, match="is damaged"):
        assert cached("test", "1", columns, tmp_path).digest == digest  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "wrong", [{}, {"a": np.arange(2), "b": np.arange(3)}, {"a": np.zeros((0, 4))}]
)
def test_columns_that_are_none_are_refused(wrong: dict[str, np.ndarray]) -> None:
    with pytest.raises(DataError, match="columns have as many samples each"):
        in_memory(wrong)


def test_too_few_samples_are_refused() -> None:
    with pytest.raises(DataError, match="a step needs 40 different samples, and there are 30"):
        in_memory(columns()).batches(Reader(20, 0, 2))  # type: ignore[arg-type]


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
    inter = "user_id:token\titem_id:token\trating:float\ttimestamp:float\n7\t9\t3\t20\n5\t9\t4\t10\n7\t2\t1\t30\n"
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
