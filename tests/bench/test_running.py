"""Why a job failed: the line that says so."""

import pytest

from thinwire.bench.job import Job
from thinwire.bench.running import BEGIN_S, STEP_S, _reason, limit_s


@pytest.mark.parametrize(
    ("lines", "reason"),
    [
        (["step 1", "ValueError: no such hook", "  "], "ValueError: no such hook"),
        (["RuntimeError: first", "LinkLostError: last"], "LinkLostError: last"),
        (["terminate called after throwing", "Aborted"], "terminate called after throwing"),
        (["only words"], "only words"),
        ([], ""),
    ],
)
def test_the_last_line_that_looks_like_an_error_is_the_reason(
    lines: list[str], reason: str
) -> None:
    assert _reason(lines) == reason


def test_more_steps_may_take_longer() -> None:
    assert limit_s(Job("ddp", {}, {}, "", "", stop=10)) == BEGIN_S + 10 * STEP_S
