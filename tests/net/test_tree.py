"""The way between switches."""

from __future__ import annotations

from thinwire.net import Trunk
from thinwire.net.tree import crossed, path, problems

TRUNKS = (Trunk(("a", "core"), 1.0, 2.0), Trunk(("core", "b"), 3.0, 4.0))


def test_a_path_is_the_same_backwards() -> None:
    assert path(TRUNKS, "a", "b") == ["a", "core", "b"] == path(TRUNKS, "b", "a")[::-1]
    assert path(TRUNKS, "a", "a") == ["a"]
    assert path(TRUNKS, "a", "nowhere") == []


def test_a_trunk_has_a_rate_each_way() -> None:
    assert [rate for _, rate in crossed(TRUNKS, "a", "b")] == [1.0, 3.0]
    assert [rate for _, rate in crossed(TRUNKS, "b", "a")] == [4.0, 2.0]


def test_what_is_no_tree_has_a_problem() -> None:
    assert list(problems(TRUNKS, ("a", "core", "b"))) == []
    assert "no link leads from a to far" in next(problems(TRUNKS, ("a", "core", "b", "far")))
    loop = (*TRUNKS, Trunk(("b", "a")))
    assert "make a loop" in next(problems(loop, ("a", "core", "b")))
