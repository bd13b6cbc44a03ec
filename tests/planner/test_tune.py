"""Which codec for a gradient: bytes and errors of each, budgets that fill what was asked for, and
the best that fits."""

import pytest

from tests.planner.gradients import spread
from thinwire.errors import ConfigError, StrategyError
from thinwire.planner.codecs import frontier, laid, measured
from thinwire.planner.tune import CHOICES, Choice, best_within, filling, limit_in_bytes, tried
from thinwire.strategy.reading import spelled
from thinwire.what import budget


def test_bytes_and_errors_are_those_of_thinwire_codecs() -> None:
    codes = ["uniform(4)", "topk(0.1) >> nf4()", "lowrank(2)", "budget(3.0)"]
    for row in tried(codes, spread()):
        other = measured(spelled("what", row.codec), spread(), 1.0)
        assert (row.nbytes, row.bits, row.error) == (other.nbytes, other.bits, other.error)
        assert (row.widths is not None) == (row.codec == "budget(3.0)")


def test_every_usual_choice_works_and_is_there_once() -> None:
    rows = list(tried(CHOICES, spread()))
    assert len(rows) == len({row.codec for row in rows}) == len(CHOICES) > 50
    assert all(row.nbytes > 0 and 0 <= row.error < 3 for row in rows)
    best = [row.codec for row in frontier(rows)]
    assert sum("budget" in code for code in best) > 5


def test_widths_are_told_for_a_budget_that_sees_the_tensors_themselves() -> None:
    codes = [
        "budget(4.0, per=0)",
        "feedback(budget(4.0, per=0))",
        "hadamard(64) >> budget(4.0)",
        "by_role(matrix=budget(4.0))",
        "uniform(4)",
    ]
    plain, wrapped, *others = tried(codes, spread())
    x, spec = laid(spread())
    assert plain.widths == wrapped.widths == budget(4.0, per=0).chosen(x, spec)
    assert list(plain.widths or ()) == ["w0", "w1", "w2", "bias"]
    assert [row.widths for row in others] == [None] * 3


@pytest.mark.parametrize("bits", [0.3, 1.0, 2.5, 3.0, 5.01, 8.0])
def test_budgets_fill_what_is_asked_for(bits: float) -> None:
    spec = laid(spread())[1]
    room = int(bits * spec.numel / 8)
    found = [spelled("what", code) for code in filling(room, spec)]
    assert len(found) == {0.3: 2, 1.0: 3}.get(
        bits, 4
    )  # the largest tensor takes 0.7 bits; without a 0, 2 are the least
    for codec in found:
        assert (
            room - codec.nbytes(spec) <= spec.numel * 0.01 / 8 + 2
        )  # a hundredth of a bit a value


def test_no_budget_fills_what_is_too_little_or_too_much() -> None:
    spec = laid(spread())[1]
    assert filling(20, spec) == filling(9 * spec.numel, spec) == []


def test_the_best_within_some_bytes() -> None:
    rows = [
        Choice(name, nbytes, 0.0, error, False, None)
        for name, nbytes, error in (("a", 9, 0.1), ("b", 5, 0.3), ("c", 4, 0.3), ("d", 2, 0.9))
    ]
    assert [best_within(rows, room).codec for room in (2, 3, 4, 8, 9, 99)] == [
        "d",
        "d",
        "c",
        "c",
        "a",
        "a",
    ]
    with pytest.raises(ConfigError, match="the smallest, d, has 2 "):
        best_within(rows, 1)


@pytest.mark.parametrize(
    ("bits", "nbytes", "told"),
    [
        (3.0, 5, "leave one out"),
        (0.0, None, "more than 0"),
        (float("nan"), None, "more than 0"),
        (0.001, None, "0 bytes"),
        (None, 0, "0 bytes"),
    ],
)
def test_bytes_that_cannot_be(bits: float | None, nbytes: int | None, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        limit_in_bytes(bits, nbytes, 1000)


def test_a_code_that_makes_no_codec_is_refused_before_any_is_tried() -> None:
    with pytest.raises(StrategyError, match="unifrom"):
        next(tried(["uniform(4)", "unifrom(4)"], spread()))
