"""A rank's beacon: who knows the token gets an answer."""

from typing import Any

from thinwire.drive.beacon import Beacon, ask, ask_all


def test_ranks_ask_one_another() -> None:
    ends: list[Any] = []
    beacon = Beacon(
        "127.0.0.1", "secret", lambda: {"step": 3}, lambda rank: {"tried": rank}, ends.append
    )
    try:
        assert ask(beacon.address, "secret", "state") == ("answers", {"step": 3})
        assert ask(beacon.address, "secret", "try 5") == ("answers", {"tried": 5})
        assert ask(beacon.address, "secret", 'ended {"rank": 1}')[0] == "answers"
        assert ends == [{"rank": 1}]
        assert ask(beacon.address, "wrong", "state")[0] == "refused"
        states = ask_all({0: beacon.address, 1: "nowhere"}, "secret", "state")
        assert {rank: state for rank, (state, _) in states.items()} == {0: "answers", 1: "unknown"}
    finally:
        beacon.close()
    assert ask(beacon.address, "secret", "state")[0] == "refused"
