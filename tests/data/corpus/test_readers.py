"""Readers: which rank reads which files of a stream."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.data.loaders.test_pipeline import TOKENIZER, patient, pipeline
from tests.data.server import Site, served
from thinwire.data import Reader, furthest, lanes_of
from thinwire.data.loaders.pipeline import Pipeline, Place
from thinwire.errors import DataError

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
