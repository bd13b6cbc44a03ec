"""The alpha-beta view: what it costs to send, and what is refused."""

from __future__ import annotations

import ast
import math
from pathlib import Path

import pytest

from thinwire.net import Link, Transport

SOURCE = Path(__file__).parents[2] / "src" / "thinwire"


@pytest.mark.parametrize(
    "wrong", [{"latency_s": -1}, {"rate_bytes_per_s": 0}, {"message_s": -1e-9}, {"window_bytes": 0}]
)
def test_a_link_that_cannot_be_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="times are at least 0 s, rates and windows positive"):
        Link(**({"latency_s": 0.1, "rate_bytes_per_s": 1.0} | wrong))  # type: ignore[arg-type]


def test_a_window_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="a window is at least 1 byte"):
        Transport(window_bytes=0)


def test_messages_leave_one_behind_the_other_and_arrive_together() -> None:
    link = Link(1.0, 100.0, message_s=0.5)
    assert link.seconds(100, 0, 100) == 1 + 2 * (0.5 + 1)
    assert link.seconds(0) == link.seconds() == 0
    assert Link(1.0, 100.0, waits=True).seconds(100) == 3.0


def test_bytes_take_no_time_where_nothing_limits_the_rate() -> None:
    assert Link(0.5, math.inf).seconds(1e12) == 0.5
    assert Link(0.0, math.inf, window_bytes=10).windowed(100) == math.inf


def test_only_a_network_makes_links() -> None:
    makers = [
        path.relative_to(SOURCE).as_posix()
        for path in SOURCE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Link"
    ]
    assert makers == ["net/network.py"], "take Network.between, so that one description serves all"
