"""What a third review found in codecs, each as it was reproduced."""

from __future__ import annotations

import pytest
import torch

from tests.how.flights import bucket, contexts_of, launch, values
from thinwire.core import Codec
from thinwire.drive.local import run
from thinwire.errors import StrategyError
from thinwire.how import direct, gather, native, two_shot
from thinwire.what import budget, by_role, cast, ef21, hadamard, lowrank, randomk, uniform


@pytest.mark.parametrize(
    "codec", [ef21(cast()), ef21(by_role(matrix=lowrank(2), vector=cast("fp16")))], ids=repr
)
def test_catching_up_is_not_added_in_sixteen_bits(codec: Codec) -> None:
    """H would keep what each sum loses, for good."""
    for route in (native(), two_shot(), direct()):
        assert route.refuses(codec)
    assert gather().refuses(ef21(cast())) is None
    assert native().refuses(ef21(lowrank(2))) is None


def test_a_sum_has_widths_of_its_own_though_widths_are_kept() -> None:
    codec, spec = budget(3.0, every=5), bucket(4096)
    ctx = contexts_of(1)[0]
    state = codec.init(spec, ctx)
    mine = torch.cat([torch.randn(2048) * 10, torch.randn(2048) * 0.01])
    theirs = mine.flip(0)
    codec.encode(mine, spec, state, ctx)
    kept = state["widths"].value.clone()
    back = ctx.child("back")
    heard = codec.decode(
        codec.encode(theirs, spec, state, back), spec, codec.init(spec, ctx), back, 0
    )
    alone = budget(3.0)
    best = alone.decode(
        alone.encode(theirs, spec, alone.init(spec, back), back),
        spec,
        alone.init(spec, back),
        back,
        0,
    )
    assert (heard - theirs).norm() == pytest.approx(float((best - theirs).norm()), rel=1e-6)
    assert torch.equal(state["widths"].value, kept), (
        "those of the rank's own contribution are as they were"
    )


@pytest.mark.parametrize("bits", [0.25, 0.5, 1.0, 2.0])
def test_a_budget_hides_no_nan_though_it_cannot_say_all(bits: float) -> None:
    codec, spec, ctx = budget(bits, choices=(0, 2, 3, 4)), bucket(8192), contexts_of(1)[0]
    for lost in (slice(None), slice(5000, 5001)):
        x = torch.randn(8192)
        x[lost] = float("nan")
        heard = codec.decode(
            codec.encode(x, spec, codec.init(spec, ctx), ctx),
            spec,
            codec.init(spec, ctx),
            ctx,
            0,
        )
        assert not heard.isfinite().all()


@pytest.mark.parametrize(
    "codec",
    [randomk(0.1), hadamard(256) >> uniform(4), budget(4.0), budget(4.0, every=2)],
    ids=repr,
)
def test_a_default_device_does_not_move_what_is_drawn_on_the_host(codec: Codec) -> None:
    """Engines measure codecs under the parameters' device; `meta` has no values, so whatever lands
    there fails."""
    xs = values(2, bucket(1000))
    with torch.device("meta"):
        flights = launch(gather(), codec, xs, bucket(1000))
        heard = run(flights)[0].total
    assert torch.equal(heard, run(launch(gather(), codec, xs, bucket(1000)))[0].total)


@pytest.mark.parametrize("step", [0.0, 1e-46, 1e39, float("inf")])
def test_a_step_that_float32_does_not_hold_is_refused(step: float) -> None:
    with pytest.raises(StrategyError, match="positive and finite in float32"):
        uniform(8, step=step)
