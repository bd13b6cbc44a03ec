"""Settings as words: each value of its key's type, and every fault told at once."""

from __future__ import annotations

import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from thinwire.text.words import (
    columns,
    expression,
    first_line,
    name_and_settings,
    near,
    settings,
    value,
)

KINDS = {"rank": int, "lr": float, "start": int | None, "warm": bool, "name": str}
VALUES = {
    "rank": st.integers(),
    "lr": st.floats(allow_nan=False, allow_infinity=False),
    "start": st.none() | st.integers(),
    "warm": st.booleans(),
    "name": st.text("abcxyz_", min_size=1),
}


def written(value: object) -> str:
    return str(value).lower() if value is None or isinstance(value, bool) else str(value)


@given(st.fixed_dictionaries({}, optional=VALUES))
def test_what_is_written_is_read(given: dict[str, object]) -> None:
    problems: list[str] = []
    text = ",".join(["word", *(f"{key}={written(each)}" for key, each in given.items())])
    name, said = name_and_settings(text)
    assert name == "word"
    assert settings(name, said, KINDS, problems) == given
    assert problems == []


def test_every_fault_has_a_sentence_and_the_rest_is_read() -> None:
    problems: list[str] = []
    said = ["rank=two", "lr", "warm=yes", "rang=3", "name=x", "name=y", "start=none"]
    assert settings("word", said, KINDS, problems) == {"name": "x", "start": None}
    assert len(problems) == 5
    assert "expected an integer, got 'two'" in problems[0]
    assert "expected key=value, got 'lr'" in problems[1]
    assert "true or false" in problems[2]
    assert "did you mean 'rank'?" in problems[3]
    assert "name is given twice" in problems[4]


@pytest.mark.parametrize("text", ["inf", "nan", "", "1e999"])
def test_a_number_is_finite(text: str) -> None:
    with pytest.raises(ValueError, match="expected a number"):
        value(text, float)


def test_a_union_is_the_narrowest_type_that_holds_the_value() -> None:
    assert [type(value(text, int | float)) for text in ("3", "3.0", "1e3")] == [int, float, float]


def test_near_words_are_offered_and_far_ones_are_not() -> None:
    assert near("powersdg", ["powersgd", "topk"]) == "; did you mean 'powersgd'?"
    assert near("quite other", ["powersgd", "topk"]) == "."


@given(st.lists(st.tuples(*[st.text("ab ", max_size=5)] * 3), min_size=1, max_size=5))
def test_columns_stand_under_one_another(rows: list[tuple[str, ...]]) -> None:
    widths = [max(len(row[at]) for row in rows) for at in range(3)]
    for row, line in zip(rows, columns(rows), strict=True):
        wide = line.ljust(sum(widths) + 4)
        assert wide[: widths[0]] == row[0].ljust(widths[0])
        assert wide[widths[0] + 2 : widths[0] + 2 + widths[1]] == row[1].rjust(widths[1])


def test_the_first_line_of_an_error_that_says_nothing_is_its_kind() -> None:
    assert first_line(ValueError("  two\nlines")) == "two"
    assert first_line(TimeoutError()) == "TimeoutError"


def test_threads_may_parse_at_once() -> None:
    deep = "+".join(["(1)"] * 200)
    failed: list[BaseException] = []

    def parse() -> None:
        try:
            for _ in range(20):
                expression(deep)
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=parse) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
