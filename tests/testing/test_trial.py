"""`round_trip` and `Trial` give what the codec and the route give, and keep state between steps."""

import pytest
import torch

from thinwire.core import Coder, RankContext, Spec, State
from thinwire.errors import PayloadError
from thinwire.how import gather, native
from thinwire.testing.trial import Trial, draw, flatten, round_trip
from thinwire.what import cast, feedback, identity, lowrank, topk, uniform


def test_a_round_trip_is_encode_and_decode() -> None:
    x, codec = draw(64, 32), uniform(4)
    spec, ctx = flatten(x), RankContext(rank=0, group=(0,), step=0, seed=0)
    state = codec.init(spec, ctx)
    payload = codec.encode(x.view(-1), spec, state, ctx)
    trip = round_trip(codec, x)
    assert trip.nbytes == payload.numel()
    assert torch.equal(trip.value, codec.decode(payload, spec, state, ctx, sender=0))
    assert str(trip).startswith(f"{payload.numel()} bytes, error ")
    assert trip.error == pytest.approx(float((trip.value - x.view(-1)).norm() / x.norm()), 1e-5)


def test_all_rounds_count() -> None:
    x = draw(64, 1) @ draw(1, 32, seed=1)
    trip = round_trip(lowrank(1), x)
    assert trip.nbytes == 4 * (64 + 32)
    assert trip.error < 1e-5


def test_random_draws_differ_by_step_and_repeat() -> None:
    codec, x = uniform(2, rounding="stochastic"), draw(1000)
    first, again, other = round_trip(codec, x), round_trip(codec, x), round_trip(codec, x, step=1)
    assert torch.equal(first.value, again.value)
    assert not torch.equal(first.value, other.value)


def test_roles_come_from_names_and_dimensions() -> None:
    spec = flatten({"embed.weight": draw(4, 2), "w": draw(2, 2), "b": draw(3)})
    assert [(part.role, part.begin) for part in spec.parts] == [
        ("embedding", 0),
        ("matrix", 8),
        ("vector", 12),
    ]


def test_a_codec_that_sends_nothing_is_an_error() -> None:
    class silent(Coder):
        def nbytes(self, spec: Spec) -> int:
            return 4

        def encode(
            self, x: torch.Tensor, spec: Spec, state: State, ctx: RankContext
        ) -> torch.Tensor:
            return torch.empty(0, dtype=torch.uint8)

        def decode(
            self, payload: torch.Tensor, spec: Spec, state: State, ctx: RankContext, sender: int
        ) -> torch.Tensor:
            return torch.zeros(spec.numel)

    with pytest.raises(PayloadError, match="sent no packet"):
        round_trip(silent(), draw(3))


def test_a_trial_sums_and_counts() -> None:
    xs = [draw(10, seed=rank) for rank in range(3)]
    trial = Trial(native(), identity(), xs[0], world=3)
    totals = trial.sum(xs)
    assert all(torch.equal(totals[0], total) for total in totals)
    torch.testing.assert_close(totals[0], xs[0] + xs[1] + xs[2])
    assert trial.sent[0] == pytest.approx(4 / 3 * 40)
    assert trial.error < 1e-6
    rounded = Trial(native(), cast(), xs[0], world=3)
    rounded.sum(xs)
    assert 1e-4 < rounded.error < 0.01
    assert trial.step == 1


def test_a_trial_keeps_residuals_and_inputs() -> None:
    x = draw(100)
    before = x.clone()
    trial = Trial(gather(), feedback(topk(10)), x, world=1)
    total = sum(trial.sum([x])[0] for _ in range(3))
    residual = trial.states[0].child("codec")["residual"].flat
    torch.testing.assert_close(total + residual, 3 * x)
    assert torch.equal(x, before)


def test_as_many_tensors_as_ranks() -> None:
    with pytest.raises(ValueError, match="zip"):
        Trial(gather(), identity(), draw(3), world=2).sum([draw(3)])
