"""Waits on the torch driver end, also where the transport does not keep its own timeout."""

from __future__ import annotations

import time
from datetime import timedelta

import torch

import thinwire
from tests.engine.models import mlp
from tests.ranks import run_ranks
from thinwire.drive import _lane
from thinwire.drive import torch as driver
from thinwire.errors import FlightError


def _stuck(rank: int) -> tuple[str, float]:
    def never(work: object) -> None:
        time.sleep(60)

    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    _lane.MARGIN_S = 0.5
    driver._wait = never
    begun = time.monotonic()
    try:
        thinwire.attach(model, optimizer, timeout=timedelta(seconds=2))
    except FlightError as error:
        return str(error), time.monotonic() - begun
    return "attached", 0.0


def test_a_transport_that_never_answers_ends_in_an_error() -> None:
    for words, seconds in run_ranks(2, _stuck):
        assert (
            "attach: asking every rank for problems could not be carried within 2 s, though "
            "every rank's heart beats"
        ) in words
        assert "the transport gave no answer within 2 s, nor an error" in words
        assert seconds < 40
