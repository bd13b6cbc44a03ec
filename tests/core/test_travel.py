"""One place answers whether components fit, by what they say of themselves and not by their
class."""

from __future__ import annotations

import ast
from dataclasses import dataclass
from pathlib import Path

import pytest

from thinwire import Strategy
from thinwire.core import Codec, Outer, Route, Schedule, Target, Tick
from thinwire.core.component import components
from thinwire.core.travel import (
    Settings,
    equal_after_landing,
    mask_refusal,
    pace_refusal,
    refusals,
    round_refusals,
    setting_refusals,
    weight_refusal,
)
from thinwire.errors import StrategyError
from thinwire.how import gather, gossip, hierarchical, native, two_shot
from thinwire.on import deltas, gradients, parameters
from thinwire.what import feedback, identity, lowrank, randomk, topk, uniform
from thinwire.when import by_speed, delayed, every, warmup

SOURCE = Path(__file__).parents[2] / "src" / "thinwire"
NODES = hierarchical(native(), two_shot(), node=2)
ENGINE = [path for room in ("engine", "quorum") for path in sorted((SOURCE / room).rglob("*.py"))]


def test_what_fits_has_no_reasons() -> None:
    assert refusals(every(1), identity(), native(), gradients()) == []
    assert refusals(every(4), feedback(topk(0.1)), gather(), deltas()) == []


def test_reasons_come_all_at_once_and_name_both_sides() -> None:
    when, what, how, on = by_speed(every(4)), topk(0.1), native(), gradients()
    found = refusals(when, what, how, on)
    assert len(found) == 2
    assert repr(what) in found[0]
    assert repr(how) in found[0]
    assert repr(when) in found[1]
    assert repr(on) in found[1]
    with pytest.raises(StrategyError) as caught:
        Strategy(when, what, how, on)
    assert list(caught.value.reasons) == found


def test_a_partial_codec_needs_a_route_that_carries_its_mask() -> None:
    assert mask_refusal(randomk(0.1), gather(), parameters()) is None
    assert mask_refusal(randomk(0.1), NODES, gradients()) is None
    reason = mask_refusal(randomk(0.1), NODES, parameters())
    assert reason is not None
    assert "Use native(), gather() or gossip()" in reason


def test_ranks_rest_only_where_all_may() -> None:
    assert pace_refusal(by_speed(every(4)), two_shot(), deltas()) is None
    for when, how, on, cure in (
        (delayed(2, by_speed(every(4))), two_shot(), deltas(), "goes around all other"),
        (by_speed(every(4)), two_shot(), gradients(), "attach(weight=…)"),
        (by_speed(every(4)), gossip(), parameters(), "a route with consensus"),
    ):
        reason = pace_refusal(when, how, on)
        assert reason is not None
        assert cure in reason


def test_rounds_with_a_quorum_want_one_packet_from_one_anchor() -> None:
    assert round_refusals(every(8), feedback(topk(0.1)), gather(), deltas()) == []
    found = round_refusals(every(8, phase=1), lowrank(2), native(), deltas(alpha=0.5))
    assert [reason.split(":")[0] for reason in found] == [
        repr(every(8, phase=1)),
        repr(native()),
        repr(deltas(alpha=0.5)),
        repr(lowrank(2)),
    ]
    assert round_refusals(warmup(2, every(8)), uniform(8), gather(), gradients()) != []


@dataclass(frozen=True)
class _Strangers(every):
    """A schedule of a stranger's that is judged by its flags."""

    @property
    def closes_rounds(self) -> bool:
        return False

    def tick(self, step: int, buckets: int) -> Tick:
        return super().tick(step, buckets)


def test_a_strangers_component_is_judged_by_its_flags() -> None:
    assert len(round_refusals(_Strangers(4), identity(), gather(), deltas())) == 1


@pytest.mark.parametrize(
    ("strategy", "settings", "cure"),
    [
        (Strategy(how=gossip(), on=parameters()), Settings(broadcasts="mean"), "buffers='local'"),
        (Strategy(how=gossip(), on=parameters()), Settings(check_every=5), "check_every=None"),
        (Strategy(every(2), on=deltas()), Settings(manual=True), "Leave source='hooks'"),
        (Strategy(every(2), on=deltas()), Settings(skips_nonfinite=True), "Take 'raise'"),
        (Strategy(every(2), on=deltas()), Settings(overlap="forward"), "behind delayed(tau, …)"),
        (Strategy(delayed(1, every(1))), Settings(overlap="priority"), "take one of the two"),
        (Strategy(delayed(1, every(1))), Settings(scaler=True), "Use bf16"),
        (Strategy(on=gradients(then="sign")), Settings(scaler=True), "must not be unscaled"),
        (Strategy(), Settings(scaler=True, overlap="forward"), "before the step. Use bf16"),
    ],
)
def test_each_setting_that_does_not_go_with_a_strategy_has_a_cure(
    strategy: Strategy, settings: Settings, cure: str
) -> None:
    slots = (strategy.when, strategy.what, strategy.how, strategy.on)
    (reason,) = setting_refusals(*slots, settings)
    assert cure in reason
    assert setting_refusals(*slots, Settings()) == []


def test_weights_may_differ_where_every_rank_receives_from_all() -> None:
    assert weight_refusal(gather(), [1.0, 2.0]) is None
    assert weight_refusal(gossip(), [2.0, 2.0]) is None
    reason = weight_refusal(gossip(), [1.0, 2.0])
    assert reason is not None
    assert "{0: 1.0, 1: 2.0}" in reason


def test_ranks_are_equal_after_a_landing_unless_parts_land_by_turns() -> None:
    for strategy, equal in (
        (Strategy(), True),
        (Strategy(every(4), on=parameters()), True),
        (Strategy(every(4), what=randomk(0.1), how=gather(), on=parameters()), False),
        (Strategy(every(4), how=gossip(), on=parameters()), False),
    ):
        slots = (strategy.when, strategy.what, strategy.how, strategy.on)
        assert equal_after_landing(*slots) is equal is strategy.compares


def test_the_engine_asks_no_component_for_its_class() -> None:
    """Not by isinstance, and not by type(…): flags and `core.travel` answer instead."""
    concrete = {
        cls.__name__
        for kind in (Codec, Route, Schedule, Target, Outer)
        for cls in components(kind.kind).values()
    } | {"Codec", "Route", "Schedule", "Target", "Outer", "Coder"}
    assert {"topk", "gather", "every", "deltas", "nesterov"} <= concrete
    asked = []
    for path in ENGINE:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call) or getattr(node.func, "id", "") not in (
                "isinstance",
                "issubclass",
            ):
                continue
            names = {each.id for each in ast.walk(node.args[1]) if isinstance(each, ast.Name)}
            asked += [f"{path.name}:{node.lineno}: {name}" for name in sorted(names & concrete)]
    assert len(ENGINE) > 20
    assert not asked
