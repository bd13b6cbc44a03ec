"""Members by name, and as plain tables."""

from dataclasses import dataclass
from typing import ClassVar

import pytest

from tests.cases import CODECS, OUTERS, ROUTES, SCHEDULES, TARGETS
from thinwire.core.component import Component, components, find, from_table, inside, to_table
from thinwire.errors import StrategyError
from thinwire.what import by_role, feedback, topk, uniform

ALL = [
    component
    for cases in (CODECS, ROUTES, SCHEDULES, TARGETS, OUTERS)
    for group in cases.values()
    for component in group
]


@dataclass(frozen=True)
class knob(Component):
    kind: ClassVar[str] = "knobs of a test"
    turns: int
    fine: tuple[float, ...] = ()
    inner: Component | None = None


@pytest.mark.parametrize("component", ALL, ids=repr)
def test_a_member_survives_its_table(component: Component) -> None:
    problems: list[str] = []
    assert from_table(component.kind, to_table(component), "here", problems) == component
    assert problems == []


@pytest.mark.parametrize("component", ALL, ids=repr)
def test_a_table_is_plain(component: Component) -> None:
    def plain(value: object) -> bool:
        if isinstance(value, dict):
            return all(isinstance(key, str) and plain(item) for key, item in value.items())
        return (
            all(map(plain, value))
            if isinstance(value, list)
            else type(value) in (str, int, float, bool)
        )

    assert plain(to_table(component))


def test_a_member_is_there_by_existing() -> None:
    assert components("knobs of a test") == {"knob": knob}
    assert find("knobs of a test", "knob") is knob
    assert to_table(knob(2, (0.5, 1.0))) == {"use": "knob", "turns": 2, "fine": [0.5, 1.0]}


def test_an_unknown_name_suggests_the_nearest() -> None:
    with pytest.raises(
        StrategyError, match=r"what: no component is called 'unifrom'. Did you mean uniform\?"
    ):
        find("what", "unifrom")
    with pytest.raises(StrategyError, match="There are: knob"):
        find("knobs of a test", "zzz")


def test_two_members_of_one_name_are_an_error() -> None:
    @dataclass(frozen=True)
    class twin(Component):
        kind: ClassVar[str] = "twins of a test"

    first = twin

    @dataclass(frozen=True)
    class twin(Component):  # type: ignore[no-redef]
        kind: ClassVar[str] = "twins of a test"

    assert first is not twin
    with pytest.raises(StrategyError, match="two classes are called twin"):
        components("twins of a test")


def test_tuples_of_any_length_and_their_items_are_checked() -> None:
    problems: list[str] = []
    assert from_table(
        "knobs of a test", {"use": "knob", "turns": 1, "fine": [1, 2.5]}, "k", problems
    ) == knob(1, (1.0, 2.5))
    assert (
        from_table("knobs of a test", {"use": "knob", "turns": 1, "fine": [1, "x"]}, "k", problems)
        is None
    )
    assert (
        from_table("knobs of a test", {"use": "knob", "turns": 1, "fine": 3}, "k", problems) is None
    )
    assert problems == ["k.fine[1]: expected float, found 'x'", "k.fine: expected tuple, found 3"]


def test_inside_finds_members_at_any_depth() -> None:
    codec = by_role(matrix=feedback(topk(3) >> uniform(4)))
    assert [type(component).__name__ for component in inside(codec)] == [
        "by_role",
        "feedback",
        "chain",
        "topk",
        "uniform",
        "identity",
        "identity",
    ]
