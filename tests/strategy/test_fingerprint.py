"""Fingerprints: what they cover, and what a later version may change without changing them."""

from __future__ import annotations

import gc
import json
from collections.abc import Iterator
from dataclasses import dataclass, field, make_dataclass
from typing import Any

import pytest

from scripts.freeze import DEFAULTS, defaults
from tests.cases import CODECS, OUTERS, ROUTES, SCHEDULES, TARGETS
from thinwire import Strategy, recipes
from thinwire.core.component import Component, components
from thinwire.errors import CheckpointError
from thinwire.how import gather
from thinwire.strategy.fingerprint import (
    VERSION,
    fingerprint,
    first_released,
    must_be_known,
    settings,
)
from thinwire.what import feedback, topk, uniform
from thinwire.when import every

FROZEN: dict[str, dict[str, Any]] = json.loads(DEFAULTS.read_text())
COMPONENTS = [
    each
    for cases in (CODECS, OUTERS, ROUTES, SCHEDULES, TARGETS)
    for some in cases.values()
    for each in some
]


def test_no_first_released_default_has_changed_and_none_is_missing() -> None:
    """A changed default says what it was first: `field(metadata=first_released(…))`. A new setting
    or component is added by `python scripts/freeze.py defaults`.
    """
    assert {name: table for name, table in defaults().items() if name in FROZEN} == {
        name: table for name, table in FROZEN.items() if name in defaults()
    }
    assert set(defaults()) == set(FROZEN)


def _later(cls: type, *fields: Any) -> type:
    """The class as a later version may have it, with settings more."""
    return make_dataclass(
        cls.__name__, fields, bases=(cls,), frozen=True, namespace={"kind": "later"}
    )


@pytest.fixture
def _forget_classes() -> Iterator[None]:
    """Collect the classes that a test made: another test's reading of code would find them."""
    yield
    gc.collect()  # a class is in a cycle with itself
    assert not components("later")


@pytest.mark.usefixtures("_forget_classes")
def test_a_new_setting_with_the_old_behaviour_by_default_changes_no_fingerprint() -> None:
    """The issue's `topk(ties=0)`: every checkpoint of topk would be of another strategy by repr."""
    later = _later(topk, ("ties", int, field(default=0)))
    assert repr(later(0.01)) != repr(topk(0.01))
    assert fingerprint(later(0.01)) == fingerprint(topk(0.01))
    assert fingerprint(later(0.01, ties=1)) != fingerprint(topk(0.01))
    both = [
        Strategy(every(4), feedback(each(64, per=4096) >> uniform(4)), gather())
        for each in (topk, later)
    ]
    assert both[0] != both[1]
    assert fingerprint(both[0]) == fingerprint(both[1])


@dataclass(frozen=True)
class _knob(Component):
    turns: int
    fine: float = 0.5


@dataclass(frozen=True)
class _knob_of_later(_knob):
    fine: float = field(default=0.9, metadata=first_released(0.5))


_knob_of_later.__name__ = "_knob"


def test_a_default_that_changes_counts_as_what_it_was_first() -> None:
    assert fingerprint(_knob_of_later(1)) == fingerprint(_knob(1, 0.9))
    assert fingerprint(_knob_of_later(1, 0.5)) == fingerprint(_knob(1))
    assert fingerprint(_knob_of_later(1)) != fingerprint(_knob(1))


def test_settings_are_compared_by_value_and_type() -> None:
    assert fingerprint(feedback(topk(0.1), decay=1)) == fingerprint(feedback(topk(0.1), decay=1.0))
    assert fingerprint(topk(1)) != fingerprint(topk(1.0))
    assert settings(topk(64)) == {"use": "topk", "k": 64}


def test_components_that_differ_have_fingerprints_that_differ() -> None:
    prints = {fingerprint(each): each for each in COMPONENTS}
    for each in COMPONENTS:
        assert prints[fingerprint(each)] == each
    assert len(prints) > 150


def test_a_fingerprint_is_the_same_on_every_machine_and_for_ever() -> None:
    """Saved state holds these."""
    assert fingerprint(Strategy()) == "1:179daa969de49e9588f2a74e26382150"
    assert fingerprint(recipes.sparseloco()) == "1:9ef13ce0bc92922f5b818b8cfccf5398"


def test_another_format_is_refused_with_the_version_that_reads_it() -> None:
    must_be_known(fingerprint(topk(3)), "the state", "0.9")
    for unknown in (f"{VERSION + 1}:00", "abc", None, 3, {"a": 1}):
        with pytest.raises(
            CheckpointError, match=r"the state .*saved by thinwire 7\.1.*that version"
        ):
            must_be_known(unknown, "the state", "7.1")
