"""Codecs that send no less than they are given."""

from __future__ import annotations

import warnings

from torch import nn

from tests.engine.test_wrappers import Adapters
from thinwire import Strategy, recipes
from thinwire.core import RankContext
from thinwire.drive.local import Fabric
from thinwire.engine.buckets import build, plan
from thinwire.engine.savings import warn_if_little


def test_a_codec_that_saves_is_not_told() -> None:
    assert not _warned(nn.Linear(512, 512), recipes.powersgd(rank=4))
    assert not _warned(Adapters(rank=4), Strategy())
    assert not _warned(Adapters(rank=4), recipes.qsgd())


def _warned(model: nn.Module, strategy: Strategy) -> str:
    """What attach says of the bytes, on rank 0 of 4."""
    built = build(
        plan(model, 25 << 20, strategy.when, wide=False),
        strategy,
        strategy.how,
        Fabric(4).driver(0),
        1,
        None,
        0,
    )
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        warn_if_little(
            strategy, strategy.how.bind(4), built, RankContext(0, (0, 1, 2, 3), 0, 0), stacklevel=1
        )
    return "".join(str(each.message) for each in found)
