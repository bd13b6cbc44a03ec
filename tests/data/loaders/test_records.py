"""Records: samples of any kind in the same orders, cached once and whole; and the packaged sets,
from packages made here."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from thinwire.data import Prefetch, Reader
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
