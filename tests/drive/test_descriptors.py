"""Descriptors are counted, and a world that needs more than are allowed is refused."""

import os
import resource

import pytest

from thinwire.drive import descriptors
from thinwire.drive.descriptors import connecting, needed, refusal

NAME = "TORCH_GLOO_LAZY_INIT"


def test_large_worlds_connect_when_they_exchange_and_small_ones_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv(NAME, raising=False)
    with connecting(32):
        assert NAME not in os.environ
    with connecting(33):
        assert os.environ[NAME] == "1"
    assert NAME not in os.environ
    assert needed(32, 1, 2) == 31 + 4
    assert needed(33, 1, 2) == 2 + 4
    assert needed(33, 3, 99) == 3 * (32 + 4)


@pytest.mark.parametrize(("value", "count"), [("0", 99 + 4), ("1", 2 + 4)])
def test_what_the_user_has_set_stays(
    monkeypatch: pytest.MonkeyPatch, value: str, count: int
) -> None:
    monkeypatch.setenv(NAME, value)
    with connecting(100):
        assert os.environ[NAME] == value
    assert os.environ[NAME] == value
    assert needed(100, 1, 2) == count


def test_a_world_that_needs_too_many_is_told_how_many_and_what_to_set(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    limits = {"now": (1024, 4096)}
    monkeypatch.setattr(resource, "getrlimit", lambda _: limits["now"])
    monkeypatch.setattr(os, "listdir", lambda _: ["0"] * 40)
    assert refusal(100, 900) is None
    text = refusal(1000, 1003) or ""
    assert "a world of 1000 ranks needs 1075 open files" in text
    assert "beside the 40 that are open, and 1024 are allowed" in text
    assert "Set `ulimit -n 1075`" in text
    assert "4096" not in text
    assert "4096 (`ulimit -Hn`) does not allow" in (refusal(8192, 8195) or "")
    assert descriptors.LAZY_FROM == 33
