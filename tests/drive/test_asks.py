"""A store that does not answer holds nobody up."""

import threading

import pytest

from thinwire.drive.asks import Asks, NoAnswerError


def test_an_answer_is_returned_and_an_error_is_told_with_the_address() -> None:
    asks = Asks("host0:29500", 5.0)
    assert asks.ask(lambda: 7) == 7

    def refuses() -> None:
        raise ConnectionResetError("reset by peer")

    with pytest.raises(NoAnswerError, match=r"the store at host0:29500 .*reset by peer") as caught:
        asks.ask(refuses)
    assert not caught.value.silent
    asks.close()
    with pytest.raises(NoAnswerError, match="this was closed"):
        asks.ask(lambda: 7)


def test_a_question_without_answer_ends_in_time_and_the_next_at_once() -> None:
    asks, answer = Asks("host0:29500", 5.0), threading.Event()
    with pytest.raises(NoAnswerError, match=r"no answer within 0\.05 s") as caught:
        asks.ask(answer.wait, limit_s=0.05)
    assert caught.value.silent
    assert asks.stuck
    with pytest.raises(NoAnswerError, match="no answer"):
        asks.ask(lambda: 7, limit_s=100.0)
    answer.set()
    for _ in range(100):
        if not asks.stuck:
            break
        threading.Event().wait(0.01)
    assert asks.ask(lambda: 7) == 7
    asks.close()
