"""A rank's beacon: who knows the token gets an answer."""

import threading
import time
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


def test_whoever_asks_while_many_do_waits_for_its_turn_and_gets_an_answer() -> None:
    """A hundred ranks ask one at once when another is lost: none may take it for lost, too."""

    def slow() -> dict[str, Any]:
        time.sleep(0.01)
        return {"step": 3}

    beacon = Beacon("127.0.0.1", "secret", slow, lambda _: {}, lambda _: None)
    states: list[str] = []
    threads = [
        threading.Thread(target=lambda: states.append(ask(beacon.address, "secret", "how")[0]))
        for _ in range(100)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    beacon.close()
    assert states == ["answers"] * 100
