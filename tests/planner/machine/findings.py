"""One finding of a check, for the tests of checks."""

from collections.abc import Callable, Iterator

from thinwire.planner.machine import host
from thinwire.planner.machine.finding import Finding


def only(check: Callable[[], Iterator[Finding]], what: str) -> Finding:
    (found,) = [each for each in host.looked(check) if each.what == what]
    return found
