"""The rows of the tables."""

from thinwire.bench.contestants import FULL, QUICK, chosen, ours
from thinwire.recipes import dense
from thinwire.strategy import Strategy


def test_names_are_unique_and_the_quick_study_takes_some_of_them() -> None:
    names = [each.name for each in FULL]
    assert len(set(names)) == len(names)
    assert {each.name for each in QUICK} < set(names)
    assert all(each.same_as in (None, *names) for each in FULL)


def test_our_own_hold_their_strategy_as_toml() -> None:
    row = ours("dense", dense(), attach={"lanes": 2})
    assert row.ours
    assert Strategy.from_toml(row.settings["strategy"]) == dense()
    assert row.settings["attach"] == {"lanes": 2}


def test_rows_are_chosen_in_the_order_given() -> None:
    names = [FULL[2].name, FULL[0].name]
    assert [each.name for each in chosen(names, FULL)] == names
