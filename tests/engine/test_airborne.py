"""A launch that failed is taken back: nothing of its values stays in what a rank remembers."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from thinwire.core import Codec, Part, RankContext, Spec, State
from thinwire.drive.local import run
from thinwire.engine.airborne import Airborne, Slice, Track
from thinwire.engine.flights import _take_back, _tracked
from thinwire.how import gather
from thinwire.what import ef21, feedback, topk, uniform

SPEC = Spec((Part("w", (300,), 0, "vector"),), 0, 300, torch.float32)


SEAT = RankContext(0, (0,), 0, 0)


def _slice(codec: Codec) -> tuple[Slice, State]:
    part = Slice(SPEC, 0, gather().init(codec, SPEC, SEAT))
    return part, part.state.child("codec")


def _flown(part: Slice, codec: Codec, step: int) -> tuple[Airborne, Tensor]:
    """A flight, and what it left encoded."""
    x = torch.randn(300, generator=torch.Generator().manual_seed(step))
    track = Track()
    outcome = run(
        {
            0: _tracked(
                gather().carry(codec, x.clone(), SPEC, part.state, replace(SEAT, step=step)),
                part,
                track,
            )
        }
    )[0]
    return Airborne(step, x, [], [track]), x - outcome.total


def _taken_back(failed: Airborne, later: deque[Airborne]) -> None:
    _take_back(SimpleNamespace(air=later), failed)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "codec",
    [
        feedback(uniform(2, block=0), decay=0.5),
        feedback(uniform(2, block=0), decay=0.9, ramp=12),
        feedback(uniform(2, block=0), start=3, ramp=8),
        feedback(uniform(2, block=0), decay=0.8, reset=4),
        feedback(uniform(2, block=0), decay=0.8, store="int8"),
        feedback(uniform(2, block=0), decay=0.8, ramp=20, store="bf16"),
    ],
    ids=lambda codec: repr(codec).partition("decay")[2],
)
@pytest.mark.parametrize("failed", [0, 2, 4, 6])
def test_of_a_failed_step_nothing_is_left_in_the_residual_whatever_the_decay_was(
    codec: feedback, failed: int
):
    """e = sum of (x_i - sent_i) · (decays after i), without the failed one: neither its values nor
    its decay."""
    last = 6
    part, state = _slice(codec)
    left, decays, airs = [], [], []
    for step in range(last + 1):
        decays.append(codec.decay_of(state, replace(SEAT, step=step)))
        air, encoded = _flown(part, codec, step)
        airs.append(air)
        left.append(encoded * (step >= codec.start))
    _taken_back(airs[failed], deque(airs[failed + 1 :]))
    expected = torch.zeros(300)
    for i in range(last + 1):
        if i != failed:
            expected += left[i] * math.prod(
                decays[j] for j in range(i + 1, last + 1) if j != failed
            )
    assert torch.allclose(state["residual"].flat, expected, atol=0.05 if codec.store else 1e-5)


@pytest.mark.parametrize("store", [None, "bf16", "int8"])
def test_of_two_failed_steps_that_were_in_the_air_together_nothing_is_left(store):
    codec = feedback(uniform(2, block=0), decay=0.6, store=store)
    part, state = _slice(codec)
    for step in range(2):
        _flown(part, codec, step)
    before = state["residual"].value
    air = deque(_flown(part, codec, step)[0] for step in (2, 3))
    while air:
        failed = air.popleft()
        _taken_back(failed, air)
    assert torch.equal(state["residual"].value, before)


def test_after_a_failed_step_ef21_still_holds_the_sum_of_what_is_known():
    """The sum of this span was finite; another's was not, and the whole step is taken back."""
    codec = ef21(topk(0.1))
    part, state = _slice(codec)
    airs = [_flown(part, codec, step)[0] for step in range(4)]
    total = state["total"].flat
    _taken_back(airs[1], deque(airs[2:]))
    assert torch.allclose(state["known"].flat, state["total"].flat, atol=1e-6)
    assert not torch.allclose(state["total"].flat, total, atol=1e-2)
