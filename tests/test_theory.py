"""Methods against what is known of them: closed forms, limits and equalities, in float64, through
the whole engine."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import thinwire
from tests.ranks import run_ranks
from tests.threads import on_threads
from thinwire import Strategy, recipes
from thinwire.core import Codec, Driver, Outer, Route, Target
from thinwire.drive.local import Fabric
from thinwire.errors import NotLandedError
from thinwire.how import gather, hierarchical, native
from thinwire.on import deltas, gradients, nesterov, optim, parameters, sgd
from thinwire.on.outer import outer_rate
from thinwire.what import dgc, feedback, identity, randomk, topk, uniform
from thinwire.when import delayed, every, growing, staggered, warmup

Maker = Callable[[list[nn.Parameter]], torch.optim.Optimizer]


@dataclass
class Seen:
    """What one rank saw: its parameters after each optimiser step, and what ranks had in common at
    the end."""

    weights: list[Tensor] = field(default_factory=list)
    common: Tensor = field(default_factory=lambda: torch.zeros(0))
    sent_bytes: float = 0.0


def sgd_of(lr: float, **settings: Any) -> Maker:
    return lambda params: torch.optim.SGD(params, lr, **settings)


def fly(
    world: int,
    strategy: Strategy,
    starts: list[Tensor],
    gradient: Callable[[int, int, list[Tensor]], list[Tensor]],
    steps: int,
    optimizer: Maker,
    passes: int = 1,
    **options: Any,
) -> list[Seen]:
    """Train by `gradient(rank, pass, weights)` on `world` ranks, in float64; each of `starts` is a
    parameter."""

    def work(driver: Driver) -> Seen:
        model = nn.ParameterList(nn.Parameter(start.clone().double()) for start in starts)
        params, seen = list(model), Seen()
        inner = optimizer(params)
        with thinwire.attach(model, inner, strategy, driver=driver, **options) as sync:
            for step in range(steps):
                for micro in range(passes):
                    wanted = gradient(
                        driver.rank, step * passes + micro, [p.detach().clone() for p in params]
                    )
                    sum((p * g).sum() for p, g in zip(params, wanted, strict=True)).backward()
                inner.step()
                inner.zero_grad()
                seen.weights.append(flat(params))
            with sync.common_weights():
                seen.common = flat(params)
            seen.sent_bytes = sync.report().sent_bytes
        return seen

    results = on_threads(world, work)
    for result in results.values():
        if isinstance(result, BaseException):
            raise result
    return [results[rank] for rank in range(world)]


def flat(tensors: Any) -> Tensor:
    return torch.cat([tensor.detach().reshape(-1) for tensor in tensors])


def noise(*shape: int, key: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(key), dtype=torch.float64)


def near(a: Tensor, b: Tensor, most: float = 1e-12) -> bool:
    return bool((a - b).abs().max() <= most)


# -- every step
# --------------------------------------------------------------------------------------------------


def test_demo_is_its_closed_form() -> None:
    """Two ranks, 8 x 8, tiles of 4 x 4, 3 frequencies of each.

    d <- 0.9 d + g; q the largest of its DCT; d <- d - q; w <- w - lr sign(mean q).
    """
    n, size, k, lr = 8, 4, 3, 0.01
    basis = torch.tensor(
        [
            [
                math.cos(math.pi * (2 * i + 1) * f / (2 * size))
                * math.sqrt((1 if f == 0 else 2) / size)
                for i in range(size)
            ]
            for f in range(size)
        ],
        dtype=torch.float64,
    )
    start = noise(n, n, key=1)
    weight, sums = start.clone(), [torch.zeros_like(start) for _ in range(2)]
    trace = []
    for step in range(4):
        said = []
        for rank in range(2):
            sums[rank] = 0.9 * sums[rank] + noise(n, n, key=100 * step + rank)
            sent = torch.zeros_like(start)
            for a in range(0, n, size):
                for b in range(0, n, size):
                    frequencies = (
                        basis @ sums[rank][a : a + size, b : b + size] @ basis.T
                    ).reshape(-1)
                    kept = torch.zeros_like(frequencies)
                    largest = frequencies.abs().topk(k).indices
                    kept[largest] = frequencies[largest]
                    sent[a : a + size, b : b + size] = basis.T @ kept.reshape(size, size) @ basis
            sums[rank] = sums[rank] - sent
            said.append(sent)
        weight = weight - lr * ((said[0] + said[1]) / 2).sign()
        trace.append(weight.reshape(-1))
    seen = fly(
        2,
        recipes.demo(size, k, 0.9),
        [start],
        lambda rank, step, _: [noise(n, n, key=100 * step + rank)],
        4,
        sgd_of(lr),
    )
    for rank in range(2):
        assert all(near(got, want) for got, want in zip(seen[rank].weights, trace, strict=True))
    assert not near(trace[0], trace[3], 1e-3)


# -- parameters
# --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", [native(), gather()], ids=repr)
def test_sparta_averages_what_the_lot_falls_on_and_leaves_the_rest(how: Route) -> None:
    """Three ranks, each on a quadratic of its own, over two buckets in slices: where they became
    equal they hold the mean."""
    starts, lr = [noise(6, 5, key=1), noise(40, key=2)], 0.1
    strategy = Strategy(every(2), randomk(0.25), how, parameters())
    minima = [
        [noise(*start.shape, key=10 * rank + i) for i, start in enumerate(starts)]
        for rank in range(3)
    ]
    options = {"bucket_bytes": 100, "slice_bytes": 96, "seed": 5}
    seen = fly(
        3,
        strategy,
        starts,
        lambda rank, _, w: [a - b for a, b in zip(w, minima[rank], strict=True)],
        6,
        sgd_of(lr),
        **options,
    )

    own, equal = [flat(starts) for _ in range(3)], []
    for step in range(6):
        own = [w - lr * (w - flat(minima[rank])) for rank, w in enumerate(own)]
        if step % 2:
            same = torch.stack([s.weights[step] for s in seen])
            mask = (same == same[0]).all(0)
            mean = sum(own) / 3
            own = [torch.where(mask, mean, w) for w in own]
            equal.append(mask)
        assert all(near(s.weights[step], w) for s, w in zip(seen, own, strict=True)), step
    assert [int(mask.sum()) for mask in equal] == [3 * 7] * 3, (
        "a quarter of each of 7 slices of 10 values, rounded up"
    )
    assert not torch.equal(equal[0], equal[1])
    assert all(near(s.common, sum(own) / 3) for s in seen)


def test_sparta_with_all_entries_is_local_sgd() -> None:
    starts = [noise(6, 5, key=1)]
    runs = [
        fly(
            2,
            Strategy(every(2), what, native(), parameters()),
            starts,
            lambda rank, t, _: [noise(6, 5, key=t) * (rank + 1)],
            4,
            sgd_of(0.1),
        )
        for what in (identity(), randomk(1.0))
    ]
    for a, b in zip(runs[0][1].weights, runs[1][1].weights, strict=True):
        assert torch.equal(a, b)


def test_check_says_that_sparta_never_makes_ranks_equal() -> None:
    model = nn.Linear(4, 4)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with thinwire.attach(model, optimizer, recipes.sparta(0.5)) as sync:
        model(torch.ones(1, 4)).sum().backward()
        optimizer.step()
        with pytest.raises(NotLandedError, match="never hold equal parameters"):
            sync.check()


# -- accumulation and periods
# -----------------------------------------------------------------------------------------


def rows(step: int, rank: int, count: int) -> tuple[Tensor, Tensor]:
    return noise(count, 6, key=1000 * step + rank), noise(count, key=500_000 + 1000 * step + rank)


def squares(x: Tensor, y: Tensor, w: Tensor) -> Tensor:
    """The gradient of half the *sum* of squared errors, of a linear model."""
    return x.T @ (x @ w - y)


def test_accumulation_is_a_large_batch() -> None:
    """Two ranks of four passes of five rows each, against one process with the forty rows: sums
    over passes, a mean over ranks."""
    start = noise(6, key=0)
    by_rank = fly(
        2,
        Strategy(every(4)),
        [start],
        lambda rank, t, w: [squares(*rows(t, rank, 5), w[0])],
        5,
        sgd_of(0.01, momentum=0.9),
        passes=4,
    )
    weight = nn.Parameter(start.clone())
    optimizer = torch.optim.SGD([weight], 0.01, momentum=0.9)
    for step in range(5):
        batch = [rows(4 * step + micro, rank, 5) for micro in range(4) for rank in range(2)]
        weight.grad = (
            squares(
                torch.cat([x for x, _ in batch]), torch.cat([y for _, y in batch]), weight.detach()
            )
            / 2
        )
        optimizer.step()
        assert near(by_rank[0].weights[step], weight.detach(), 1e-12)
        assert torch.equal(by_rank[0].weights[step], by_rank[1].weights[step])


def dense_steps(world: int, steps: int, lr: float, **settings: Any) -> list[Tensor]:
    """Plain data parallelism on the linear model, by one process."""
    weight, trace = nn.Parameter(noise(6, key=0)), []
    optimizer = torch.optim.SGD([weight], lr, **settings)
    for step in range(steps):
        weight.grad = torch.stack(
            [squares(*rows(step, rank, 5), weight.detach()) for rank in range(world)]
        ).mean(0)
        optimizer.step()
        trace.append(weight.detach().clone())
    return trace


def linear(rank: int, step: int, w: list[Tensor]) -> list[Tensor]:
    return [squares(*rows(step, rank, 5), w[0])]


@pytest.mark.parametrize(
    ("strategy", "momentum"),
    [
        (Strategy(every(1), on=parameters()), 0.0),
        (
            Strategy(every(1), on=parameters()),
            0.9,
        ),  # a momentum is linear in gradients: each rank keeps its own, the mean is the mean's
        (Strategy(every(1), on=deltas(sgd(1.0))), 0.0),
        (Strategy(every(1), on=deltas(optim("SGD", "lr=1.0"))), 0.0),
        (Strategy(warmup(9, every(5)), on=parameters()), 0.9),
    ],
    ids=[
        "local SGD",
        "local SGD with momentum",
        "deltas",
        "deltas by torch",
        "post-local SGD in its dense phase",
    ],
)
def test_one_local_step_is_plain_data_parallelism(strategy: Strategy, momentum: float) -> None:
    expected = dense_steps(3, 8, 0.02, momentum=momentum)
    for seen in fly(3, strategy, [noise(6, key=0)], linear, 8, sgd_of(0.02, momentum=momentum)):
        assert all(near(got, want) for got, want in zip(seen.weights, expected, strict=True))


def test_post_local_sgd_is_dense_and_then_local() -> None:
    seen = fly(
        3, recipes.post_local_sgd(start=4, period=3), [noise(6, key=0)], linear, 10, sgd_of(0.02)
    )
    assert near(seen[0].weights[3], dense_steps(3, 4, 0.02)[3])
    own = [seen[0].weights[3]] * 3
    for step in range(4, 10):
        own = [w - 0.02 * squares(*rows(step, rank, 5), w) for rank, w in enumerate(own)]
        own = [sum(own) / 3] * 3 if step in (6, 9) else own
        assert all(near(s.weights[step], w) for s, w in zip(seen, own, strict=True)), step


def test_growing_rounds_average_when_the_rule_says() -> None:
    seen = fly(
        2, Strategy(growing(1, 4), on=parameters()), [noise(6, key=0)], linear, 12, sgd_of(0.02)
    )
    equal = [
        step for step in range(12) if torch.equal(seen[0].weights[step], seen[1].weights[step])
    ]
    assert equal == [0, 2, 6, 10]


# -- two levels of periods
# --------------------------------------------------------------------------------------------


def in_nodes(inside: Strategy, across: Strategy, steps: int) -> list[Seen]:
    """Four ranks in two nodes: one strategy among the two of a node, another among all; one
    optimiser."""
    nodes = [Fabric(2), Fabric(2)]

    def work(driver: Driver) -> Seen:
        weight, seen = nn.Parameter(noise(6, key=0)), Seen()
        model = nn.ParameterList([weight])
        optimizer = torch.optim.SGD([weight], 0.02, momentum=0.9)
        here = nodes[driver.rank // 2].driver(driver.rank % 2, 1)
        with (
            thinwire.attach(model, optimizer, inside, driver=here),
            thinwire.attach(model, optimizer, across, driver=driver) as outer,
        ):
            for step in range(steps):
                (weight * linear(driver.rank, step, [weight.detach().clone()])[0]).sum().backward()
                optimizer.step()
                optimizer.zero_grad()
                seen.weights.append(flat([weight]))
            with outer.common_weights():
                seen.common = flat([weight])
        return seen

    results = on_threads(4, work)
    for result in results.values():
        if isinstance(result, BaseException):
            raise result
    return [results[rank] for rank in range(4)]


@pytest.mark.parametrize("how", [native(), hierarchical(native(), native(), 2)], ids=repr)
def test_equal_periods_on_two_levels_are_flat(how: Route) -> None:
    """Every step inside a node and every step across: data parallelism over all four. The same with
    three."""
    expected = dense_steps(4, 6, 0.02, momentum=0.9)
    for seen in in_nodes(Strategy(), Strategy(every(1), how=how, on=parameters()), 6):
        assert all(near(got, want) for got, want in zip(seen.weights, expected, strict=True))
    local = fly(
        4,
        Strategy(every(3), on=parameters()),
        [noise(6, key=0)],
        linear,
        6,
        sgd_of(0.02, momentum=0.9),
    )
    levels = in_nodes(
        Strategy(every(3), on=parameters()), Strategy(every(3), how=how, on=parameters()), 6
    )
    for one, other in zip(local, levels, strict=True):
        assert all(near(one.weights[step], other.weights[step]) for step in range(6))


def test_every_step_inside_a_node_and_every_third_across() -> None:
    """Each node is one replica of twice the batch: DiLoCo of two replicas, by one process."""
    outer = nesterov(0.6, 0.9)
    seen = in_nodes(
        Strategy(), Strategy(every(3), how=hierarchical(native(), native(), 2), on=deltas(outer)), 6
    )
    anchor = nn.Parameter(noise(6, key=0))
    step_outer = torch.optim.SGD([anchor], 0.6, momentum=0.9, nesterov=True)
    replicas = [nn.Parameter(noise(6, key=0)) for _ in range(2)]
    inner = [torch.optim.SGD([replica], 0.02, momentum=0.9) for replica in replicas]
    for step in range(6):
        for node, (replica, optimizer) in enumerate(zip(replicas, inner, strict=True)):
            replica.grad = torch.stack(
                [squares(*rows(step, 2 * node + i, 5), replica.detach()) for i in range(2)]
            ).mean(0)
            optimizer.step()
        if step % 3 == 2:
            anchor.grad = anchor.detach() - sum(replica.detach() for replica in replicas) / 2
            step_outer.step()
            for replica in replicas:
                replica.data.copy_(anchor.detach())
        for rank in range(4):
            assert near(seen[rank].weights[step], replicas[rank // 2].detach()), (step, rank)


def _two_levels(rank: int) -> tuple[Tensor, Tensor, float]:
    """As docs/on/deltas.md has it, over gloo."""
    mine, _ = torch.distributed.new_subgroups(2)
    weight = nn.Parameter(noise(6, key=0))
    model = nn.ParameterList([weight])
    optimizer = torch.optim.SGD([weight], 0.02, momentum=0.9)
    how = hierarchical(native(), native(), node=2)
    with (
        thinwire.attach(model, optimizer, Strategy(), group=mine),
        thinwire.attach(
            model, optimizer, Strategy(every(3), how=how, on=deltas(nesterov(0.6)))
        ) as across,
    ):
        for step in range(6):
            (weight * linear(rank, step, [weight.detach().clone()])[0]).sum().backward()
            optimizer.step()
            optimizer.zero_grad()
        across.check()
        return flat([weight]), noise(6, key=0), across.report().sent_bytes


def test_two_levels_over_process_groups_are_those_of_one_process() -> None:
    local = in_nodes(
        Strategy(),
        Strategy(every(3), how=hierarchical(native(), native(), 2), on=deltas(nesterov(0.6))),
        6,
    )
    for got, start, sent in run_ranks(4, _two_levels):
        assert near(got, local[0].weights[-1])
        assert not near(got, start, 1e-3)
        assert sent > 0


# -- delay
# --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tau", [0, 1, 2, 4])
@pytest.mark.parametrize(("share", "stable"), [(0.95, True), (1.05, False)])
def test_delayed_sgd_on_a_quadratic_is_stable_below_its_limit_and_not_above(
    tau: int, share: float, stable: bool
) -> None:
    """w(t+1) = w(t) - eta a w(t - tau) is stable if and only if eta a < 2 sin(pi / (2 (2 tau +
    1))).

    That is 2, 1, 0.618 and 0.347 for a tau of 0, 1, 2 and 4 (Levin & May 1976).
    """
    curvature = 3.0
    limit = 2 * math.sin(math.pi / (2 * (2 * tau + 1))) / curvature
    strategy = Strategy(delayed(tau, every(1)))
    seen = fly(
        2,
        strategy,
        [torch.ones(1)],
        lambda _, __, w: [curvature * w[0]],
        240,
        sgd_of(share * limit),
    )
    early, late = (
        max(float(w.abs()) for w in seen[0].weights[a:b]) for a, b in ((30, 60), (210, 240))
    )
    assert (late < early) == stable
    assert late / early < 0.5 if stable else late / early > 2


@pytest.mark.parametrize("tau", [1, 2])
def test_delay_compensation_is_its_recurrence(tau: int) -> None:
    """w(t+1) = w(t) - lr (G + c G² (w(t) - w(t - tau))), G the mean gradient at w(t - tau)."""
    lr, c = 0.02, 0.05
    strategy = Strategy(delayed(tau, every(1)), on=gradients(compensate=c))
    trace = [noise(6, key=0)]
    for step in range(7):
        now = trace[-1]
        if step < tau:
            trace.append(now)
            continue
        then = trace[step - tau]
        mean = sum(squares(*rows(step - tau, rank, 5), then) for rank in range(2)) / 2
        trace.append(now - lr * (mean + c * mean * mean * (now - then)))
    for seen in fly(2, strategy, [noise(6, key=0)], linear, 7, sgd_of(lr)):
        assert all(near(got, want) for got, want in zip(seen.weights, trace[1:], strict=True))
    plain = fly(2, Strategy(delayed(tau, every(1))), [noise(6, key=0)], linear, 7, sgd_of(lr))
    assert not near(plain[0].weights[6], trace[7], 1e-6)


def test_delay_compensation_widens_what_is_stable_where_g_squared_is_the_curvature() -> None:
    """On f = -log p of one weight the squared gradient is the curvature's estimate; here c is
    chosen so that c G² = a at the start."""
    a, tau = 1.0, 2
    eta = 1.15 * 2 * math.sin(math.pi / (2 * (2 * tau + 1))) / a
    ends = []
    for on in (gradients(), gradients(compensate=1.0)):
        strategy = Strategy(delayed(tau, every(1)), on=on)
        seen = fly(1, strategy, [torch.ones(1)], lambda _, __, w: [a * w[0]], 40, sgd_of(eta))
        ends.append(max(float(w.abs()) for w in seen[0].weights[-10:]))
    assert ends[1] < ends[0]


# -- feedback and momentum
# --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("codec", [topk(1, per=8), randomk(2), uniform(2, 0)], ids=repr)
def test_feedbacks_residual_is_bounded_and_sent_sums_converge(codec: Codec) -> None:
    """For a steady gradient g, what was sent in T steps is T g to within a residual that does not
    grow: its mean nears g as 1/T."""
    start, lr, steps = torch.zeros(16, dtype=torch.float64), 1.0, 160
    pulls = [noise(16, key=5), noise(16, key=6)]
    strategy = Strategy(what=feedback(codec), how=gather())
    seen = fly(2, strategy, [start], lambda rank, _, __: [pulls[rank]], steps, sgd_of(lr))
    mean = (pulls[0] + pulls[1]) / 2
    waiting = [
        float((-seen[0].weights[t] - (t + 1) * mean).norm()) for t in range(steps)
    ]  # the mean of the ranks' residuals
    assert max(waiting) > 1e-3, "the codec loses something"
    assert max(waiting[steps // 2 :]) <= 1.3 * max(waiting[: steps // 2]), "it does not grow"
    errors = [waiting[t] / (t + 1) for t in range(steps)]
    assert max(errors[-20:]) < max(errors[:20]) / 5


def test_without_feedback_sent_sums_do_not_converge() -> None:
    pull = noise(16, key=5)
    seen = fly(
        1,
        Strategy(what=topk(1, per=8), how=gather()),
        [torch.zeros(16)],
        lambda *_: [pull],
        60,
        sgd_of(1.0),
    )
    assert float((-seen[0].weights[-1] / 60 - pull).norm()) > 0.5


def test_momentum_corrected_sparsification_is_dense_momentum_at_density_one() -> None:
    expected = dense_steps(2, 8, 0.02, momentum=0.9)
    strategy = Strategy(what=dgc(topk(1.0), momentum=0.9, mask=False), how=gather())
    for seen in fly(2, strategy, [noise(6, key=0)], linear, 8, sgd_of(0.02)):
        assert all(near(got, want) for got, want in zip(seen.weights, expected, strict=True))


# -- outer optimisers
# -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("alpha", [0.0, 0.5])
def test_one_replica_with_an_outer_optimiser_is_its_closed_form(alpha: float) -> None:
    """On a w²/2, H steps of rate eta take w to q w, q = (1 - eta a)^H.

    alpha 0:    A <- (1 - lr (1 - q)) A
    alpha 0.5:  w after the r-th round is half q w + half A; two linear recurrences.
    """
    a, eta, period, lr, rounds = 2.0, 0.05, 4, 0.7, 6
    q = (1 - eta * a) ** period
    seen = fly(
        1,
        Strategy(every(period), on=deltas(sgd(lr), alpha)),
        [torch.ones(1)],
        lambda _, __, w: [a * w[0]],
        24,
        sgd_of(eta),
    )
    if alpha == 0:
        assert near(
            seen[0].common, torch.tensor([(1 - lr * (1 - q)) ** rounds], dtype=torch.float64)
        )
        return
    anchor = own = 1.0
    for _ in range(rounds):
        own = q * own
        anchor = anchor - lr * (anchor - own)
        own = alpha * own + (1 - alpha) * anchor
    assert near(seen[0].weights[-1], torch.tensor([own], dtype=torch.float64))
    assert near(seen[0].common, torch.tensor([anchor], dtype=torch.float64))


def test_one_replica_with_nesterov_is_the_power_of_a_matrix() -> None:
    """(A, v) <- (A - lr ((1 - q) A + mu v'), v'), v' = mu v + (1 - q) A."""
    a, eta, period, lr, mu, rounds = 2.0, 0.05, 4, 0.6, 0.9, 7
    q = (1 - eta * a) ** period
    seen = fly(
        1,
        Strategy(every(period), on=deltas(nesterov(lr, mu))),
        [torch.ones(1)],
        lambda _, __, w: [a * w[0]],
        28,
        sgd_of(eta),
    )
    d = 1 - q
    matrix = torch.tensor([[1 - lr * d * (1 + mu), -lr * mu * mu], [d, mu]], dtype=torch.float64)
    expected = torch.linalg.matrix_power(matrix, rounds) @ torch.tensor(
        [1.0, 0.0], dtype=torch.float64
    )
    assert near(seen[0].common, expected[:1])


@pytest.mark.parametrize(
    "outer",
    [optim("AdamW", "lr=0.05, weight_decay=0.1"), optim("Muon", "lr=0.1"), nesterov()],
    ids=repr,
)
def test_diloco_takes_any_optimiser_of_torch(outer: Outer) -> None:
    """Two matrices in two buckets, three ranks, against torch's optimiser on the mean delta;
    without a rate, the known one."""
    starts = [noise(4, 6, key=1), noise(5, 5, key=2)]

    def pull(rank: int, step: int, w: list[Tensor]) -> list[Tensor]:
        return [x - noise(*x.shape, key=rank + 10 * i) for i, x in enumerate(w)]

    seen = fly(
        3, Strategy(every(2), on=deltas(outer)), starts, pull, 8, sgd_of(0.1), bucket_bytes=100
    )
    anchors = [nn.Parameter(start.clone()) for start in starts]
    known = torch.optim.SGD(anchors, outer_rate(3, 2), momentum=0.9, nesterov=True)
    optimizer = outer.make(anchors) if isinstance(outer, optim) else known
    for _ in range(4):
        ends = []
        for rank in range(3):
            own = [anchor.detach().clone() for anchor in anchors]
            for _ in range(2):
                own = [w - 0.1 * g for w, g in zip(own, pull(rank, 0, own), strict=True)]
            ends.append(own)
        for i, anchor in enumerate(anchors):
            anchor.grad = anchor.detach() - sum(end[i] for end in ends) / 3
        optimizer.step()
    assert all(
        near(s.common, flat(anchors), 1e-6 if outer == optim("Muon", "lr=0.1") else 1e-12)
        for s in seen
    )


# -- Streaming DiLoCo
# -------------------------------------------------------------------------------------------------

PULLS = torch.tensor(
    [[1.0, 2.0], [3.0, 6.0]], dtype=torch.float64
)  # by rank, then by parameter: every step takes this off


def streaming(
    tau: int, alpha: float, lr: float, steps: int, eager: bool = False
) -> tuple[list[Tensor], Tensor]:
    """Two parameters, each a fragment of its own; H = 4, the first at steps 1, 5, …, the second at
    3, 7, …: by hand."""
    own = torch.zeros(2, 2, dtype=torch.float64)  # rank, fragment
    anchor = torch.zeros(2, dtype=torch.float64)
    flying: dict[int, tuple[int, Tensor, Tensor]] = {}
    trace = []
    for step in range(steps):
        own = own - PULLS
        for fragment, due in ((0, 1), (1, 3)):
            if step % 4 == due:
                delta = anchor[fragment] - own[:, fragment]
                ahead = torch.zeros(2, dtype=torch.float64)
                if eager:
                    ahead = -lr * delta
                    own[:, fragment] = anchor[fragment] + ahead
                flying[fragment] = (step + tau, delta.mean(), ahead)
        for fragment, (land, mean, ahead) in list(flying.items()):
            if land == step:
                del flying[fragment]
                anchor[fragment] = anchor[fragment] - lr * mean
                if eager:
                    own[:, fragment] = own[:, fragment] - lr * mean - ahead
                else:
                    own[:, fragment] = alpha * own[:, fragment] + (1 - alpha) * anchor[fragment]
        trace.append(own.clone())
    return trace, anchor


def flown(tau: int, on: Target, steps: int) -> list[Seen]:
    strategy = Strategy(delayed(tau, staggered(2, every(4))), on=on)
    # buckets are made from the last parameter to the first, so the last one is fragment 0
    starts = [torch.zeros(1), torch.zeros(1)]
    return fly(
        2,
        strategy,
        starts,
        lambda rank, _, __: [PULLS[rank, 1:], PULLS[rank, :1]],
        steps,
        sgd_of(1.0),
        bucket_bytes=8,
    )


@pytest.mark.parametrize("tau", [0, 1])
@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_streaming_diloco_is_its_trace(tau: int, alpha: float) -> None:
    expected, anchor = streaming(tau, alpha, 0.5, 12)
    for rank, seen in enumerate(flown(tau, deltas(sgd(0.5), alpha), 12)):
        for step in range(12):
            assert near(seen.weights[step].flip(0), expected[step][rank]), (rank, step)
        assert near(seen.common.flip(0), anchor)


def test_streaming_diloco_in_plain_numbers() -> None:
    """tau 1, alpha 0.5, outer SGD of rate 0.5; rank 0's two parameters and both anchors, worked out
    on paper."""
    seen = flown(1, deltas(sgd(0.5), 0.5), 6)[0]
    first = [float(w[1]) for w in seen.weights]
    second = [float(w[0]) for w in seen.weights]
    # launched at step 1: ranks have -2 and -6, the mean delta is 4, the anchor goes to -2; at step
    # 2 rank 0 has -3: (-3 - 2) / 2
    assert first == [-1, -2, -2.5, -3.5, -4.5, -5.5]
    # launched at step 3: ranks have -8 and -24, the mean delta is 16, the anchor goes to -8; at
    # step 4 rank 0 has -10: (-10 - 8) / 2
    assert second == [-2, -4, -6, -8, -9, -11]
    assert seen.common.tolist() == [-8, -2]


@pytest.mark.parametrize("tau", [0, 1, 3])
def test_eager_updates_are_their_trace(tau: int) -> None:
    expected, anchor = streaming(tau, 0.0, 0.5, 12, eager=True)
    for rank, seen in enumerate(flown(tau, deltas(sgd(0.5), eager=True), 12)):
        assert all(near(seen.weights[step].flip(0), expected[step][rank]) for step in range(12))
        assert near(seen.common.flip(0), anchor)


def test_eager_without_a_delay_is_plain_and_alone_with_sgd_1_it_changes_nothing() -> None:
    plain, eager = (flown(0, deltas(nesterov(0.6, 0.9), eager=word), 8) for word in (False, True))
    assert all(near(a, b) for a, b in zip(plain[1].weights, eager[1].weights, strict=True))
    strategy = Strategy(delayed(2, every(3)), on=deltas(sgd(1.0), eager=True))
    alone = fly(1, strategy, [noise(6, key=0)], linear, 9, sgd_of(0.02))
    expected = dense_steps(1, 9, 0.02)
    assert all(near(got, want) for got, want in zip(alone[0].weights, expected, strict=True))


def test_a_run_shorter_than_its_period_ends_without_a_mean() -> None:
    """Nothing was launched, so nothing lands: each rank keeps its own steps, and the anchor is
    where all began."""
    with pytest.warns(UserWarning, match="longer than the run"):
        seen = fly(
            2,
            Strategy(every(100), on=deltas(nesterov())),
            [noise(6, key=0)],
            linear,
            5,
            sgd_of(0.02),
        )
    assert not torch.equal(seen[0].weights[-1], seen[1].weights[-1])
    assert all(torch.equal(s.common, noise(6, key=0)) for s in seen)
    with pytest.warns(UserWarning, match="longer than the run"):
        averaged = fly(
            2, Strategy(every(100), on=parameters()), [noise(6, key=0)], linear, 5, sgd_of(0.02)
        )
    assert all(near(s.common, sum(other.weights[-1] for other in averaged) / 2) for s in averaged)
