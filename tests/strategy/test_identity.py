"""The identity of a strategy in saved state: written, read back, and read from older versions."""

from __future__ import annotations

from typing import Any

import pytest

from tests.strategy.test_recipes import NEEDS
from thinwire import Strategy, recipes
from thinwire.errors import CheckpointError
from thinwire.how import gather
from thinwire.on import deltas, sgd
from thinwire.strategy.identity import identity, read_identity
from thinwire.what import tucker
from thinwire.when import every, staggered

ALL = [make(**NEEDS.get(name, {})) for name, make in recipes.names().items()]


@pytest.mark.parametrize("strategy", ALL, ids=list(recipes.names()))
def test_an_identity_is_of_its_strategy_alone(strategy: Strategy) -> None:
    saved = read_identity(identity(strategy), "the state")
    assert [saved.is_of(other) for other in ALL] == [other == strategy for other in ALL]
    assert (saved.code, saved.fragments) == (repr(strategy), strategy.when.fragments)


@pytest.mark.parametrize("strategy", ALL, ids=list(recipes.names()))
def test_the_code_alone_is_read_as_versions_before_fingerprints_saved_it(
    strategy: Strategy,
) -> None:
    saved = read_identity({"strategy": repr(strategy), "when": repr(strategy.when)}, "the state")
    assert saved == read_identity(identity(strategy), "the state")


def test_another_schedule_of_the_same_local_steps_is_told_apart() -> None:
    local = Strategy(every(3), on=deltas(sgd(1.0)))
    saved = read_identity(identity(local), "the state")
    assert saved.differs_in_schedule_alone(Strategy(staggered(2, every(5)), on=deltas(sgd(1.0))))
    assert not saved.differs_in_schedule_alone(local)
    assert not saved.differs_in_schedule_alone(Strategy(every(5), on=deltas(sgd(0.9))))
    dense = read_identity(identity(Strategy(every(1))), "the state")
    assert not dense.differs_in_schedule_alone(Strategy(every(2)))


def _with(**changed: Any) -> dict[str, Any]:
    return {**identity(Strategy(every(2))), "thinwire": "7.1", **changed}


@pytest.mark.parametrize(
    ("saved", "reason"),
    [
        (_with(fingerprints={"strategy": "1:ab"}), "names no strategy"),
        (_with(fingerprints=[1]), "names no strategy"),
        (
            _with(fingerprints=dict.fromkeys(("strategy", "when", "what", "how", "on"), "9:ab")),
            r"fingerprint of format '9'; .*reads format 1\. It was saved by thinwire 7\.1",
        ),
        (
            {"strategy": "Strategy(what=topkk(k=3))"},
            r"saved by thinwire 0\.1\.0 .*no component is called 'topkk'",
        ),
        ({"strategy": "Strategy(what=topk(k=3, ties=1))"}, r"ties.*Read it with thinwire 0\.1\.0"),
        ({"strategy": "exit()"}, "is no code such as Strategy"),
        ({"strategy": "(" * 5000}, "cannot build"),
        ({}, "cannot build"),
    ],
    ids=["slots", "no table", "format", "component", "setting", "code", "deep", "nothing"],
)
def test_what_cannot_be_compared_is_refused_with_the_version_that_reads_it(
    saved: dict[str, Any], reason: str
) -> None:
    with pytest.raises(CheckpointError, match=reason):
        read_identity(saved, "the state")


def test_codes_of_before_are_read_under_the_new_names_of_settings() -> None:
    code = "Strategy(what=tucker(share=0.5), how=gather(), on=deltas(place='cpu'))"
    read = read_identity({"strategy": code, "when": "every(1)"}, "the state")
    assert read.is_of(Strategy(what=tucker(0.5), how=gather(), on=deltas(device="cpu")))
