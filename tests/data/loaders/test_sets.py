"""A packed set: the text's own ids wherever it lies, each host fetching its share, and nothing
taken on trust."""

from __future__ import annotations

import errno
import json
import os
import re
import resource
import shutil
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.data.conftest import LETTERS, SHARD, SPECIALS, TEXT
from tests.data.server import Site, cut, served, status
from thinwire.data import Prefetch, Reader, encode, prepare, tokenizer_from
from thinwire.data.corpus.text import Text
from thinwire.data.loaders import sets
from thinwire.data.loaders.sets import INDEX, SetReader, write_set
from thinwire.data.loaders.streamed import Streamed
from thinwire.errors import DataError


def reader(place: str | Path, cache: Path, limit: int = 10**9) -> SetReader:
    return SetReader(str(place), cache, limit)


def test_a_set_holds_the_texts_ids(packed: Path, tmp_path: Path) -> None:
    tokenizer = tokenizer_from("byte", TEXT, SPECIALS)
    source = reader(packed, tmp_path)
    for part, shards in (("train", source.set.train), ("held", source.set.held)):
        ids = np.concatenate([source.ids(shard) for shard in shards])
        assert ids.tolist() == np.concatenate(list(encode(tokenizer, getattr(TEXT, part)))).tolist()
    assert {shard.tokens for shard in source.set.train[:-1]} == {SHARD // 2}
    assert source.set.dtype == "<u2"
    assert source.tokenizer(SPECIALS).get_vocab() == tokenizer.get_vocab()
    assert (source.set.train_bytes, source.set.held_bytes) == (len(LETTERS), 16)


def test_its_digest_is_that_of_the_unpacked_text(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(LETTERS)
    from thinwire.data import read_text

    text = read_text(str(tmp_path / "a.txt"))
    made = write_set(tmp_path / "set", text, tokenizer_from("byte", text, SPECIALS), SHARD)
    assert (
        made.digest
        == prepare(str(tmp_path / "a.txt"), "byte", SPECIALS, tmp_path / "cache")[1].digest
    )


def stream(
    source: SetReader, world: int = 1, rank: int = 0, batch: int = 4, **more: object
) -> Streamed:
    given = {"length": 9, "overlap": 1, "seed": 5, "ahead": 2, **more}
    origin = given.pop("origin", (0, 0))
    return Streamed(source, Reader(batch, rank, world, origin), **given)  # type: ignore[arg-type]


def test_an_epoch_reads_every_window_once(packed: Path, tmp_path: Path) -> None:
    one = stream(reader(packed, tmp_path), batch=7)
    size, ids = (
        one.order.size,
        np.concatenate([one.source.ids(shard) for shard in one.source.set.train]),
    )
    begins = {tuple(ids[at : at + 9].tolist()): at for at in range(len(ids) - 8)}
    for epoch in range(2):
        first, after = epoch * size, (epoch + 1) * size
        rows = torch.cat([one.at(step) for step in range(first // 7, -(-after // 7))])[first % 7 :][
            :size
        ]
        found = sorted(begins[tuple(row)] for row in rows.tolist())
        assert all(later - earlier >= 8 for earlier, later in pairwise(found)), (
            "windows share one token at most"
        )
        assert len(found) == size >= len(ids) // 8 - len(one.source.set.train)
    one.close()


@settings(
    deadline=None, max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    whos=st.lists(
        st.tuples(st.integers(1, 4), st.integers(1, 5), st.integers(0, 4)), min_size=1, max_size=3
    ),
    start=st.integers(0, 10**4),
)
def test_stopped_anywhere_and_resumed_in_any_world_it_is_the_same_sequence(
    packed: Path, tmp_path: Path, whos: list[tuple[int, int, int]], start: int
) -> None:
    source = reader(packed, tmp_path)
    step, rows = 0, start
    for world, batch, steps in whos:
        ranks = [stream(source, world, rank, batch, origin=(step, rows)) for rank in range(world)]
        whole = stream(source, 1, 0, world * batch, origin=(step, rows))
        for each in range(step, step + steps):
            together = [row for rank in ranks for row in rank.at(each).tolist()]
            assert sorted(together) == sorted(whole.at(each).tolist())
        one = stream(source, 1, 0, 1)
        if steps:
            alone = sorted(one.at(row).tolist()[0] for row in range(rows, rows + world * batch))
            assert sorted(whole.at(step).tolist()) == alone, (
                "the same rows as one by one from the first step"
            )
        step, rows = step + steps, rows + steps * world * batch
        for opened in (*ranks, whole, one):
            opened.close()


def test_over_http_it_is_the_same_and_each_rank_fetches_its_share(
    packed: Path, site: Site, tmp_path: Path
) -> None:
    site.faults = [None, None, cut(0.5), status(503), cut(0.1)]
    here = stream(reader(packed, tmp_path / "no"), batch=8, stripes=8)
    epoch = here.order.size // 8
    fetched = []
    for rank in range(4):
        source = reader(site.url, tmp_path / str(rank))
        far = stream(source, 4, rank, 2, stripes=8)
        assert all(
            sorted(far.at(step).tolist())
            == sorted(stream(reader(packed, tmp_path), 4, rank, 2, stripes=8).at(step).tolist())
            for step in range(0, epoch - 4, 37)
        )
        for step in range(epoch - 4):
            far.at(step)
        far.close()
        fetched.append(source.fetched_bytes)
    whole = sum(shard.tokens * 2 for shard in here.source.set.train)
    assert max(fetched) < 0.4 * whole, "a quarter, and the shards at both ends of it"
    assert sum(fetched) >= whole * 0.95
    here.close()


def test_a_second_epoch_and_a_second_run_need_no_server(packed: Path, tmp_path: Path) -> None:
    with served(Site(folder=packed)) as site:
        source = reader(site.url, tmp_path)
        first = stream(source)
        epoch = -(-first.order.size // 4)
        rows = [first.at(step) for step in range(epoch + 5)]
        first.close()
    before = len(site.asked)
    again = stream(source)
    assert all(again.at(step).equal(rows[step]) for step in range(epoch + 5))
    again.close()
    assert len(site.asked) == before


def test_a_failure_comes_with_the_step_that_needs_the_shard_and_goes_when_it_is_mended(
    packed: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(packed, copy)
    for path in copy.glob("train-*.bin"):
        path.rename(path.with_suffix(".away"))
    one = stream(reader(copy, tmp_path / "cache"))
    with Prefetch(one.at, stop=20) as ahead, pytest.raises(DataError, match="cannot be read"):
        ahead.at(0)
    for path in copy.glob("train-*.away"):
        path.rename(path.with_suffix(".bin"))
    assert one.at(0).shape == (4, 9)
    one.close()


def test_what_cannot_be_is_refused(packed: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is there already: pack into a new folder"):
        write_set(packed, TEXT, tokenizer_from("byte", TEXT, SPECIALS))
    with pytest.raises(DataError, match="give the folder or address of a set that thinwire packed"):
        reader(tmp_path / "nothing", tmp_path)
    with pytest.raises(
        DataError, match="hold 0; take a smaller batch, a shorter context or larger shards"
    ):
        stream(reader(packed, tmp_path), length=600)
    with pytest.raises(ValueError, match="shares 0 to 8 tokens"):
        stream(reader(packed, tmp_path), overlap=9)
    with pytest.raises(DataError, match="lacks special tokens"):
        reader(packed, tmp_path).tokenizer(["<mask>"])


def test_prepare_takes_a_set(packed: Path, site: Site, tmp_path: Path) -> None:
    for place in (str(packed), site.url):
        tokenizer, tokens = prepare(f"set:{place}", "", SPECIALS, tmp_path)
        assert tokenizer.decode(tokens.held[:8]) == "held out"
        assert tokens.train_tokens == len(LETTERS) + len(TEXT.train)
        batches = tokens.batches(Reader(4), length=9, overlap=1, seed=5)
        with Prefetch(batches.at) as ahead:
            assert ahead.at(3).shape == (4, 9)
        batches.close()
    with pytest.raises(DataError, match="comes with its own tokenizer, and 'byte' was asked for"):
        prepare(f"set:{packed}", "byte", SPECIALS, tmp_path)
    with pytest.raises(DataError, match="names no set"):
        prepare("set:", "", SPECIALS, tmp_path)


def test_an_index_is_small_and_says_it_all(packed: Path) -> None:
    index = json.loads((packed / INDEX).read_text())
    assert set(index) == {"thinwire set", "text", "dtype", "train", "held", "tokenizer", "digest"}
    files = sorted(row[0] for part in ("train", "held") for row in index[part]["shards"])
    assert sorted(path.name for path in packed.glob("*.bin")) == files


@pytest.mark.parametrize("name", ["/x", "../x", "tokenizer/../../x", "elsewhere/x", ""])
def test_a_set_writes_to_no_other_place(packed: Path, tmp_path: Path, name: str) -> None:
    shutil.copytree(packed, tmp_path / "set")
    index = json.loads((packed / INDEX).read_text())
    index["tokenizer"].append([name, 1, "00"])
    (tmp_path / "set" / INDEX).write_text(json.dumps(index))
    with pytest.raises(DataError, match="is no file of a tokenizer"):
        reader(tmp_path / "set", tmp_path)


def test_a_full_disk_is_told_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, files = sets._write, []

    def write(path: Path, *more: object) -> object:
        files.append(path)
        if len(files) > 3:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return whole(path, *more)  # type: ignore[arg-type]

    monkeypatch.setattr(sets, "_write", write)
    with pytest.raises(
        DataError, match=r"packing into .* stopped .*No space left on device.*: make room there"
    ):
        write_set(tmp_path / "set", TEXT, tokenizer_from("byte", TEXT, SPECIALS), SHARD)
    assert list(tmp_path.iterdir()) == []


def test_a_disk_too_full_for_the_tokenizer_is_told_and_leaves_nothing(tmp_path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    tokenizer = tokenizer_from("byte", TEXT, SPECIALS)
    try:
        resource.setrlimit(
            resource.RLIMIT_FSIZE, (2 * SHARD, before[1])
        )  # shards fit; tokenizer.json, which Rust writes, does not
        with pytest.raises(
            DataError
        ) as error:  # the kernel says EFBIG where a full disk says ENOSPC
            write_set(tmp_path / "out" / "set", TEXT, tokenizer, SHARD)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert re.fullmatch(
        (
            r"packing into '.*/out/set' stopped \(File too large\): make room there, or give "
            r"another folder"
        ),
        str(error.value),
    )
    assert list((tmp_path / "out").iterdir()) == []


def test_a_folder_that_may_not_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(
        DataError,
        match=r"stopped \(File exists\): see that you may write there, or give another folder",
    ):
        write_set(tmp_path / "file" / "set", TEXT, tokenizer_from("byte", TEXT, SPECIALS), SHARD)


@pytest.mark.parametrize(
    ("train", "held", "lacks"), [((), (b"a",), "train on"), ((b"a",), (), "hold out")]
)
def test_a_text_that_lacks_a_part_is_not_packed(
    tmp_path: Path, train: tuple[bytes, ...], held: tuple[bytes, ...], lacks: str
) -> None:
    with pytest.raises(DataError, match=f"the text 'a' has nothing to {lacks}"):
        write_set(tmp_path / "set", Text("a", train, held), tokenizer_from("byte", TEXT, SPECIALS))
    assert list(tmp_path.iterdir()) == []
