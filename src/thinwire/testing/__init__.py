"""Check a component against every law of its kind.

    from thinwire.testing import check_codec

    def test_ternary() -> None:
        check_codec(ternary(), error_bound=lambda x, spec, ctx: x.abs().max().expand_as(x),
        unbiased=True)

A broken law raises AssertionError, which names the law, the member and the input. No test runner is
needed.
"""

from thinwire.testing.cases import RANKS, contexts, inputs, specs
from thinwire.testing.check_codec import check_codec
from thinwire.testing.check_route import check_route
from thinwire.testing.check_schedule import check_schedule
from thinwire.testing.trial import Trial, draw, round_trip

__all__ = [
    "RANKS",
    "Trial",
    "check_codec",
    "check_route",
    "check_schedule",
    "contexts",
    "draw",
    "inputs",
    "round_trip",
    "specs",
]
