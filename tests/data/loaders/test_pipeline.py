"""A stream of text: nothing lost or doubled on the way from documents to rows, and one may stop
anywhere."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.data.server import Site, served
from thinwire.data import Prefetch, Reader, encode, furthest, lanes_of, tokenizer_from
from thinwire.data.corpus.clean import cleaned, cleaners, long_enough, tidied, unseen
from thinwire.data.corpus.text import Text
from thinwire.data.loaders.pipeline import Pipeline, Place
from thinwire.errors import DataError

TOKENIZER = tokenizer_from("byte", Text("none", (), ()), ["<|endoftext|>"])
patient = settings(deadline=None, max_examples=40)
texts = st.lists(
    st.text("abcdefgh", min_size=1, max_size=12).map(str.encode), min_size=1, max_size=8
)


def pipeline(documents: list[bytes], who: Reader, **more: object) -> Pipeline:
    return Pipeline(lambda: iter(documents), TOKENIZER, who, **{"length": 5, **more})  # type: ignore[arg-type]


def tokens(documents: list[bytes], count: int) -> list[int]:
    """The first tokens of the endless stream."""
    once = np.concatenate(list(encode(TOKENIZER, documents))).tolist()
    return list(itertools.islice(itertools.cycle(once), count))


@patient
@given(documents=texts, overlap=st.integers(0, 3), world=st.integers(1, 3), batch=st.integers(1, 3))
def test_rows_lie_side_by_side_in_the_stream_of_all_ranks(
    documents: list[bytes], overlap: int, world: int, batch: int
) -> None:
    ranks = [
        pipeline(documents, Reader(batch, rank, world), overlap=overlap) for rank in range(world)
    ]
    rows = [row for step in range(6) for rank in ranks for row in rank.at(step).tolist()]
    stride = 5 - overlap
    stream = tokens(documents, stride * len(rows) + 5)
    assert rows == [stream[at * stride : at * stride + 5] for at in range(len(rows))]


@patient
@given(
    documents=texts,
    stop=st.integers(0, 12),
    world=st.integers(1, 3),
    then=st.integers(1, 3),
    overlap=st.integers(0, 2),
)
def test_one_may_stop_at_any_step_and_go_on_in_any_world(
    documents: list[bytes], stop: int, world: int, then: int, overlap: int
) -> None:
    first = pipeline(documents, Reader(2, 0, world), overlap=overlap)
    for step in range(stop):
        first.at(step)
    whole = pipeline(documents, Reader(1), overlap=overlap)
    for rank in range(then):
        who = first.who.resized(stop, batch=3, rank=rank, world=then)
        again = pipeline(documents, who, overlap=overlap, places=first.places)
        for step in (stop, stop + 1):
            row = who.first(step) + 3 * rank
            assert again.at(step).tolist() == [
                whole.at(at).tolist()[0] for at in range(row, row + 3)
            ]


@patient
@given(documents=texts, steps=st.lists(st.integers(0, 15), min_size=1, max_size=5))
def test_a_step_does_not_ask_what_was_read_before(documents: list[bytes], steps: list[int]) -> None:
    used = pipeline(documents, Reader(2))
    for step in steps:
        assert used.at(step).equal(pipeline(documents, Reader(2)).at(step))


sources = st.lists(
    st.lists(st.text("abcdefgh", min_size=1, max_size=12).map(str.encode), min_size=1, max_size=4),
    min_size=1,
    max_size=4,
)


def laned(source: list[list[bytes]], who: Reader, **more: object) -> Pipeline:
    return Pipeline(
        [documents.__iter__ for documents in source], TOKENIZER, who, **{"length": 5, **more}
    )  # type: ignore[arg-type]


@patient
@given(source=sources, overlap=st.integers(0, 3), world=st.integers(1, 4), batch=st.integers(1, 4))
def test_rows_of_lanes_are_the_same_in_any_world(
    source: list[list[bytes]], overlap: int, world: int, batch: int
) -> None:
    ranks = [laned(source, Reader(batch, rank, world), overlap=overlap) for rank in range(world)]
    alone = [pipeline(documents, Reader(1), overlap=overlap) for documents in source]
    for step in range(5):
        found = sorted(row for rank in ranks for row in rank.at(step).tolist())
        numbers = range(step * world * batch, (step + 1) * world * batch)
        assert found == sorted(
            alone[g % len(source)].at(g // len(source)).tolist()[0] for g in numbers
        )


@patient
@given(
    source=sources,
    stop=st.integers(0, 8),
    world=st.integers(1, 4),
    then=st.integers(1, 4),
    with_places=st.booleans(),
)
def test_lanes_go_on_in_another_world(
    source: list[list[bytes]], stop: int, world: int, then: int, with_places: bool
) -> None:
    ranks = [laned(source, Reader(2, rank, world)) for rank in range(world)]
    for step in range(stop):
        for rank in ranks:
            rank.at(step)
    places = furthest(*(rank.places for rank in ranks)) if with_places else ()
    whole = laned(source, Reader(3 * then, origin=(stop, stop * 2 * world)))
    again = [
        laned(source, each.who.resized(stop, batch=3, rank=rank, world=then), places=places)
        for rank, each in enumerate([ranks[0]] * then)
    ]
    for step in (stop, stop + 1):
        assert [row for rank in again for row in rank.at(step).tolist()] == whole.at(step).tolist()


@pytest.mark.parametrize(
    ("world", "count", "batch"), [(2, 4, 2), (4, 4, 1), (2, 2, 3), (1, 4, 4), (4, 8, 4)]
)
def test_a_rank_reads_its_own_lanes_alone_and_another_world_goes_on_from_there(
    world: int, count: int, batch: int
) -> None:
    read: list[tuple[int, int]] = []  # lane, document

    def lane(number: int):  # type: ignore[no-untyped-def]
        def documents():  # type: ignore[no-untyped-def]
            for document in range(10**6):
                read.append((number, document))
                yield b"a" * 4000

        return documents

    def pipelines(who: list[Reader], places: list[Place]) -> tuple[list[Pipeline], list[set[int]]]:
        made, seen = (
            [
                Pipeline(list(map(lane, range(count))), TOKENIZER, each, length=999, places=places)
                for each in who
            ],
            [],
        )
        for rank in made:
            read.clear()
            for step in range(rank.who.origin[0], rank.who.origin[0] + 30):
                rank.at(step)
            seen.append({number for number, _ in read})
        return made, seen

    ranks, seen = pipelines([Reader(batch, rank, world) for rank in range(world)], [])
    assert sorted(number for each in seen for number in each) == list(range(count)), (
        "each lane has one reader"
    )
    assert {len(each) for each in seen} == {count // world}
    places = furthest(*(rank.places for rank in ranks))
    assert {place.row for place in places} == {30 * world * batch // count}
    (again,), _ = pipelines(
        [ranks[0].who.resized(30, batch=world * batch, rank=0, world=1)], list(places)
    )
    assert again.places[0].row == 60 * world * batch // count


def test_ranks_fetch_the_files_of_their_lanes_alone(tmp_path: Path) -> None:
    names = [f"{number}.jsonl" for number in range(8)]
    files = {
        f"/t/{name}": "".join(
            json.dumps({"text": f"{name} line {at}"}) + "\n" for at in range(20)
        ).encode()
        for name in names
    }
    with served(Site(files | {"/t/files.txt": "\n".join(names).encode()})) as site:
        fetched, rows = [], []
        for rank in range(2):
            site.asked.clear()
            stream = Pipeline(
                lanes_of(f"{site.url}/t/", 4, tmp_path / str(rank)),
                TOKENIZER,
                Reader(4, rank, 2),
                length=16,
            )
            rows += [stream.at(step) for step in range(20)]
            fetched.append({path for path, _ in site.asked if path != "/t/files.txt"})
    assert fetched == [
        {f"/t/{name}" for name in names if int(name[0]) % 4 in own} for own in ((0, 1), (2, 3))
    ]
    (tmp_path / "t").mkdir()
    for name in names:
        (tmp_path / "t" / name).write_bytes(files[f"/t/{name}"])
    whole = Pipeline(lanes_of(str(tmp_path / "t"), 4), TOKENIZER, Reader(8), length=16)
    assert all(torch.cat((rows[step], rows[20 + step])).equal(whole.at(step)) for step in range(20))


def test_lanes_are_whole_files(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("text")
    with pytest.raises(
        DataError, match=r"a lane is made of whole files, and there are 1; ask for 1 to 1"
    ):
        lanes_of(str(tmp_path), 2)
    for source in ("bundled", "hf:name"):
        with pytest.raises(
            DataError, match=r"lanes are made of whole files; of a dataset take rows.shard"
        ):
            lanes_of(source, 1)
    with pytest.raises(ValueError, match="2 lanes and 1 places"):
        laned([[b"a"], [b"b"]], Reader(1), places=[Place()])
    with pytest.raises(ValueError, match="0 lanes"):
        laned([], Reader(1))


def test_a_place_beyond_the_first_epoch_needs_no_reading_up_to_it() -> None:
    documents = [b"one", b"two", b"three"]
    assert pipeline(documents, Reader(1, origin=(0, 4)), places=[Place(4, 4, 1)]).at(
        0
    ).tolist() == [[*b"wo", 256, *b"th"]]


def test_documents_are_read_as_they_are_needed() -> None:
    read: list[int] = []

    def documents():  # type: ignore[no-untyped-def]
        for number in range(10**9):
            read.append(number)
            yield b"a" * 4000

    stream = Pipeline(documents, TOKENIZER, Reader(2), length=128)
    with Prefetch(stream.at, stop=200) as ahead:
        for step in range(200):
            ahead.at(step)
    assert len(read) < 200 * 2 * 128 / 4000 + 3


def test_cleaning_is_done_anew_in_each_epoch() -> None:
    stream = Pipeline(
        lambda: [b"aa", b"b", b"aa", b"ccc"],
        TOKENIZER,
        Reader(1),
        length=7,
        clean=lambda: [unseen(), long_enough(2)],
    )
    assert [stream.at(step).tolist() for step in range(3)] == [[[*b"aa", 256, *b"ccc", 256]]] * 3


def test_a_stream_without_documents_is_refused() -> None:
    with pytest.raises(DataError, match="no documents, or cleaning leaves none"):
        pipeline([], Reader(1)).at(0)
    with pytest.raises(DataError, match="no documents, or cleaning leaves none"):
        pipeline([b"a"], Reader(1), clean=lambda: [long_enough(2)]).at(0)
    with pytest.raises(ValueError, match="shares 0 to 4 tokens"):
        pipeline([b"a"], Reader(1), overlap=5)


@given(st.text().map(lambda text: text.encode(errors="ignore")))
def test_tidying_twice_is_tidying_once(document: bytes) -> None:
    assert tidied(tidied(document)) == tidied(document)


def test_cleaners_go_one_after_the_other() -> None:
    documents = [b"x" * 300, b"x" * 300 + b"  ", b"short"]
    assert list(cleaned(documents, cleaners(["tidied", "long_enough", "unseen"]))) == [b"x" * 300]
    assert list(cleaned(documents, [])) == documents


def test_rows_are_the_callers() -> None:
    stream = pipeline([b"abcdefgh"], Reader(1))
    stream.at(0).zero_()
    assert stream.at(0).equal(torch.tensor([[*b"abcde"]]))


def test_a_stream_of_hugging_face_datasets_is_read_as_it_comes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "data").mkdir()
    texts = [f"document {number}" for number in range(20)]
    (tmp_path / "data" / "train.jsonl").write_text(
        "".join(json.dumps({"text": text}) + "\n" for text in texts)
    )
    rows = datasets.load_dataset(str(tmp_path / "data"), split="train", streaming=True)
    stream = Pipeline(
        lambda: (row["text"].encode() for row in rows), TOKENIZER, Reader(3), length=9
    )
    alone = pipeline([text.encode() for text in texts], Reader(3), length=9)
    assert all(stream.at(step).equal(alone.at(step)) for step in range(12))
