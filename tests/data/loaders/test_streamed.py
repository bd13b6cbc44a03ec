"""Token sets that are read from a server as they are needed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.data.conftest import SHARD
from tests.data.loaders.test_sets import reader, stream
from tests.data.server import Site, served
from thinwire.data.loaders.sets import INDEX
from thinwire.errors import DataError


def test_a_small_cache_is_kept_small_and_what_was_evicted_comes_again(
    site: Site, tmp_path: Path
) -> None:
    source = reader(site.url, tmp_path, limit=20 * SHARD)
    small = stream(source, stripes=4)
    for step in range(0, 2 * small.order.size // 4, 7):
        small.at(step)
        assert small.source._cache.used_bytes() <= 20 * SHARD
    small.close()
    assert source.fetched_bytes > sum(shard.tokens * 2 for shard in source.set.train)


def with_shards(part: str, shards: list[object]) -> Callable[[bytes], bytes]:
    """An index that says that a part has other shards."""
    return lambda data: json.dumps(
        {**json.loads(data), part: {"bytes": 1, "shards": shards}}
    ).encode()


@pytest.mark.parametrize(
    ("name", "damage", "line", "far_line"),
    [
        (
            "train-00001.bin",
            lambda data: data[:-2],
            "1022 bytes, not 1024",
            "has changed|cannot be read",
        ),
        ("train-00001.bin", lambda data: data[:-1] + b"!", "another checksum", "another checksum"),
        ("held-00000.bin", lambda data: data[:0], "0 bytes, not", "cannot be read|lies|changed"),
        (INDEX, lambda data: data[:50], "no index of a set", "no index of a set"),
        (
            INDEX,
            lambda data: data.replace(b'"thinwire set": 1', b'"thinwire set": 9'),
            "has format 9",
            "has format 9",
        ),
        (
            INDEX,
            lambda data: data.replace(b"train-00000.bin", b"../00000.bin"),
            "no index of a set",
            "no index of a set",
        ),
        (INDEX, lambda data: b"[]" + data[:0], "no index of a set", "no index of a set"),
        (INDEX, with_shards("train", []), "an empty shard, or none", "an empty shard, or none"),
        (INDEX, with_shards("held", []), "an empty shard, or none", "an empty shard, or none"),
        (
            INDEX,
            with_shards("train", [["train-00000.bin", 0, ""]]),
            "an empty shard, or none",
            "an empty shard, or none",
        ),
    ],
    ids=range(10),
)
@pytest.mark.parametrize("far", [False, True])
def test_a_damaged_set_is_refused(
    packed: Path, tmp_path: Path, name: str, damage, line: str, far_line: str, far: bool
) -> None:  # type: ignore[no-untyped-def]
    copy = tmp_path / "copy"
    shutil.copytree(packed, copy)
    (copy / name).write_bytes(damage((copy / name).read_bytes()))

    def read(place: str) -> None:
        source = reader(place, tmp_path / "cache")
        source.held()
        one = stream(source)
        for step in range(one.order.size // 4):
            one.at(step)

    with (
        served(Site(folder=copy)) as site,
        pytest.raises(DataError, match=far_line if far else line),
    ):
        read(site.url if far else str(copy))
