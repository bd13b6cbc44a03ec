"""Every law that is checked is broken by some member of these tests: a check that nobody fails may
check nothing."""

import ast
from pathlib import Path

from tests.testing import (
    test_check_codec,
    test_check_route,
    test_check_schedule,
    test_claims,
    test_hostile,
)
from thinwire import testing


def laws() -> set[str]:
    """The third argument of every call of `require`, read from the sources."""
    found = set()
    for path in Path(str(testing.__file__)).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Name)
                and node.func.id == "require"
            ):
                found |= {
                    leaf.value
                    for leaf in ast.walk(node.args[2])
                    if isinstance(leaf, ast.Constant) and isinstance(leaf.value, str)
                }
    return found


def test_every_law_is_broken_by_someone() -> None:
    broken = {law for _, law in test_check_codec.BROKEN} | {
        law for *_, law in test_check_route.BROKEN
    }
    broken |= {law for _, law in [*test_hostile.BROKEN, *test_claims.BROKEN]}
    broken |= {law for _, law in test_check_schedule.BROKEN.values()}
    assert len(laws()) > 30
    assert sorted(laws() - broken) == []
    assert sorted(broken - laws()) == []
