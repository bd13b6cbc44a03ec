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

from thinwire.data import Prefetch, Reader, encode, tokenizer_from
from thinwire.data.corpus.text import Text
from thinwire.data.loaders.pipeline import Pipeline, Place

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
