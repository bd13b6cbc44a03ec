"""One rank of a large world finds out who is lost, and the others take it over."""

from __future__ import annotations

import json
import threading
from typing import Any

import pytest
import torch.distributed as dist

from thinwire.drive import verdicts
from thinwire.drive.asks import Asks
from thinwire.drive.blame import Diagnosis, Standing
from thinwire.drive.verdicts import Found, Verdicts, posted

LOST: Found = Diagnosis("lost", (3,), "rank 3 lost"), {3: Standing(5, "step 2"), 1: Standing()}


@pytest.fixture
def asks() -> Any:
    made = Asks("a test", 10.0)
    yield made
    made.close()


def never() -> Found:
    raise AssertionError("only the speaker looks")


def test_the_first_to_come_looks_and_the_others_name_it(asks: Asks) -> None:
    store = dist.HashStore()
    looks = []

    def look() -> Found:
        looks.append(1)
        return LOST

    assert Verdicts(asks, store, 7, 50).verdict(look) == LOST
    found, standings = Verdicts(asks, store, 9, 50).verdict(never)
    assert (found.kind, found.ranks) == ("lost", (3,))
    assert found.text == "rank 3 lost (found by rank 7)"
    assert standings[3].label == "step 2"
    assert len(looks) == 1


def test_a_rank_that_the_speaker_takes_for_lost_says_so(asks: Asks) -> None:
    store = dist.HashStore()
    Verdicts(asks, store, 7, 50).verdict(lambda: LOST)
    found, _ = Verdicts(asks, store, 3, 50).verdict(never)
    assert (found.kind, found.ranks) == ("alone", ())
    assert found.text == "rank 7 did not reach this rank, and has taken it for lost"


@pytest.mark.parametrize("text", ["", "{", "[]", json.dumps({"verdict": {"kind": "odd"}})])
def test_what_is_no_verdict_and_what_concerns_the_speaker_alone_has_another_speak(
    asks: Asks, text: str
) -> None:
    store = dist.HashStore()
    if text:
        store.set("speaker/0", "5")
        store.set("verdict/0", text)
    else:
        Verdicts(asks, store, 5, 50).verdict(lambda: (Diagnosis("alone", (), "cut off"), {}))
    assert Verdicts(asks, store, 6, 50).verdict(lambda: LOST) == LOST
    assert Verdicts(asks, store, 8, 50).verdict(never)[0].text == "rank 3 lost (found by rank 6)"


def test_speakers_that_never_say_anything_are_waited_for_no_longer_than_their_time(
    asks: Asks, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verdicts, "_PATIENCE_S", 0.2)
    monkeypatch.setattr(verdicts, "_WAIT_S", 0.05)
    store = dist.HashStore()
    for turn in range(2):
        store.set(f"speaker/{turn}", "1")
    assert Verdicts(asks, store, 2, 50).verdict(lambda: LOST) == LOST


def test_keys_that_are_there_are_read_by_one_question(asks: Asks) -> None:
    calls: list[str] = []

    class Counted:
        def __init__(self) -> None:
            self._store = dist.HashStore()

        def __getattr__(self, name: str) -> Any:
            calls.append(name)
            return getattr(self._store, name)

    store = Counted()
    keys = [f"beat/{rank}" for rank in range(100)]
    for rank in range(100):
        store.set(keys[rank], str(rank))
    calls.clear()
    assert posted(asks, store, keys) == {rank: str(rank).encode() for rank in range(100)}
    assert calls == ["check", "multi_get"]
    # one that is missing costs a few questions, not two for each rank
    calls.clear()
    found = posted(asks, store, [*keys, "beat/none"])
    assert (len(found), calls.count("multi_get")) == (100, 1)
    assert len(calls) < 20
    assert posted(asks, store, []) == {}


def test_threads_of_many_ranks_agree_on_one_speaker() -> None:
    store, looks, texts = dist.HashStore(), [], []

    def one(rank: int) -> None:
        own = Asks("a test", 10.0)

        def look() -> Found:
            looks.append(rank)
            return LOST

        texts.append(Verdicts(own, store, rank, 50).verdict(look)[0].kind)
        own.close()

    threads = [threading.Thread(target=one, args=(rank,)) for rank in range(10, 30)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(looks), texts) == (1, ["lost"] * 20)
