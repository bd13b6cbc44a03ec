import pytest
import torch
from torch import Tensor

from tests.some import some
from tests.test_theory import flat, fly, sgd_of
from tests.what.wrap.test_ef21 import RANKS, SPEC, begin, told
from thinwire import Strategy
from thinwire.core import Codec, Outcome, State
from thinwire.errors import StrategyError
from thinwire.how import gather, native, server, two_shot
from thinwire.testing import contexts
from thinwire.what import ef21, feedback, identity, lowrank, on_change, topk, uniform
from thinwire.when import delayed, every


def said(
    codec: Codec, xs: dict[int, Tensor], states: dict[int, State], step: int
) -> tuple[dict[int, int], Outcome]:
    """The bytes that each rank says in a flight, and what comes of it, for all alike."""
    packets, outcomes = told(codec, xs, states, step)
    assert all(
        torch.equal(outcome.total, outcomes[RANKS[0]].total) for outcome in outcomes.values()
    )
    return {rank: packet.payload.numel() for rank, packet in packets.items()}, outcomes[RANKS[0]]


def test_who_has_changed_speaks_and_of_the_others_the_last_word_counts() -> None:
    codec = on_change(xi=0.1, window=3)
    xs, states = begin(codec)
    assert said(codec, xs, states, 0)[0] == dict.fromkeys(RANKS, 240)
    moved = {**xs, 2: xs[2] * 3}
    nbytes, outcome = said(codec, moved, states, 1)
    assert nbytes == {1: 0, 2: 240, 5: 0}
    assert torch.allclose(outcome.total, xs[1] + 3 * xs[2] + xs[5], atol=1e-5)


def test_the_rule_is_the_one_of_the_paper_to_the_last_flight_of_the_window() -> None:
    """One rank whose totals have norms 1, 1, 1 (window 2): silent up to a change of sqrt(xi · 2)
    and no further."""
    for longer, speaks in ((0.99, False), (1.01, True)):
        codec = on_change(xi=0.02, window=2)
        state, unit = codec.init(SPEC, contexts()[1]), torch.zeros(60)
        unit[3] = 1.0
        xs = [unit, unit, unit, unit * (1 + longer * (0.02 * 2) ** 0.5)]
        sizes = []
        for step, x in enumerate(xs):
            ctx = contexts(step, group=(1,))[1]
            flow = codec.rounds(x, SPEC, state, ctx)
            packet = next(flow)
            sizes.append(packet.payload.numel())
            with pytest.raises(StopIteration):
                flow.send(packet.open(packet.payload.clone(), 1))
        assert sizes == [240, 0, 0, 240 if speaks else 0]


def test_nobody_is_silent_for_longer_than_said() -> None:
    codec = on_change(xi=0.5, longest=2)
    xs, states = begin(codec)
    spoke = [
        said(codec, {rank: x * (1 + 1e-3 * step) for rank, x in xs.items()}, states, step)[0][5] > 0
        for step in range(7)
    ]
    assert spoke == [True, False, False, True, False, False, True]


def test_at_threshold_0_it_is_the_plain_codec() -> None:
    codec = on_change(xi=0.0)
    xs, states = begin(codec)
    for step, scale in enumerate((1.0, 1.0, -2.0, 0.5)):
        now = {rank: x * scale for rank, x in xs.items()}
        nbytes, outcome = said(codec, now, states, step)
        assert set(nbytes.values()) == {0 if step == 1 else 240}, (
            "what has not changed at all need not be said"
        )
        assert torch.allclose(outcome.total, torch.stack(list(now.values())).sum(0), atol=1e-5)


STIFF = [
    1.0,
    1.3,
    1.7,
    2.2,
    2.9,
    3.7,
    4.8,
    9.0,
]  # the ranks' smoothness, as in the paper's experiments: from small to large


def descend(
    strategy: Strategy, steps: int, rate: float = 1.0, **options: int
) -> tuple[list[float], list[float]]:
    """Gradient descent on sum_k stiff_k / 2 · (w - own_k)' C (w - own_k) / K: distances, and each
    rank's bytes a step."""
    world, curve = len(STIFF), torch.linspace(0.1, 1, 12, dtype=torch.float64)
    own = [
        torch.randn(12, generator=torch.Generator().manual_seed(k), dtype=torch.float64)
        for k in range(world)
    ]

    def gradient(rank: int, _: int, weights: list[Tensor]) -> list[Tensor]:
        return list((STIFF[rank] * curve * (flat(weights) - own[rank])).split([8, 4]))

    seen = fly(
        world,
        strategy,
        [torch.zeros(8), torch.zeros(4)],
        gradient,
        steps,
        sgd_of(rate * world / sum(STIFF)),
        **options,
    )
    best = sum(s * w for s, w in zip(STIFF, own, strict=True)) / sum(STIFF)
    assert all(torch.equal(rank.weights[-1], seen[0].weights[-1]) for rank in seen)
    distances = [float((w - best).norm()) for w in seen[0].weights]
    return [distance / distances[0] for distance in distances], [
        rank.sent_bytes / steps for rank in seen
    ]


@pytest.mark.parametrize("how", some([gather(), server((0,))], 1), ids=repr)
def test_on_a_quadratic_it_converges_as_fast_as_descent_in_a_fraction_of_the_bytes(
    how: gather | server,
) -> None:
    """Two buckets a rank; in the paper's words, the same rate of convergence and fewer uploads."""
    plain, dense = descend(Strategy(every(1), identity(), how), 110, bucket_bytes=64)
    lazy, sent = descend(Strategy(every(1), on_change(), how), 110, bucket_bytes=64)
    took = [
        next(step for step, distance in enumerate(run) if distance < 1e-4) for run in (plain, lazy)
    ]
    assert took[1] < 1.1 * took[0]
    assert all(mine < 0.5 * full for mine, full in zip(sent[1:], dense[1:], strict=True)), (
        "the rest sent no more than they had to"
    )
    assert max(sent[1:]) > 0
    assert sent[1] < 0.7 * sent[-1], "a rank of small curvature speaks less"


def test_it_holds_where_totals_land_late_and_a_quantiser_speaks() -> None:
    lazy, _ = descend(
        Strategy(delayed(1, every(1)), on_change(uniform(8)), gather()), 140, rate=0.5
    )
    assert lazy[-1] < 1e-4


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(StrategyError) as caught:
        on_change(xi=-1.0, window=0, longest=0)
    assert len(caught.value.reasons) == 3
    for inner in (lowrank(2), feedback(topk(1)), ef21(topk(1))):
        with pytest.raises(StrategyError, match=r"must send one packet|count a loss twice"):
            on_change(inner)  # type: ignore[arg-type]
    with pytest.raises(StrategyError, match="cannot be added unopened"):
        Strategy(what=on_change(), how=native())
    with pytest.raises(StrategyError, match="encoding the sum again"):
        Strategy(what=on_change(uniform(4)), how=two_shot())
    assert Strategy(what=on_change(), how=two_shot())
