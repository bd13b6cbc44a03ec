"""The meter's account of processor time: each pass once, the loop's own work not at all."""

from __future__ import annotations

import copy
import time
from typing import Any

import pytest
import torch

import thinwire
from tests.engine.models import loss_of, mlp, train
from tests.ranks import run_ranks
from thinwire import Strategy, recipes
from thinwire.core import RankContext
from thinwire.drive.threads import thread_ids
from thinwire.engine.observe.meter import Meter, Report, Row
from thinwire.how import gather, native
from thinwire.on import deltas, gradients, sgd
from thinwire.what import cast, feedback, topk, uniform
from thinwire.when import every, staggered

START = mlp()
SPARSE = Strategy(what=feedback(topk(0.1)), how=gather())


class Clock:
    """A thread's clock that goes on by 1 s whenever somebody works."""

    def __init__(self) -> None:
        self.now = 0.0

    def work(self, seconds: float = 1.0) -> None:
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(time, "thread_time", lambda: made.now)
    return made


def busy(monkeypatch: pytest.MonkeyPatch, clock: Clock, owner: Any, name: str) -> None:
    """Let a method take a second of processor time."""
    own = getattr(owner, name)

    def slow(*args: Any, **settings: Any) -> Any:
        clock.work()
        return own(*args, **settings)

    monkeypatch.setattr(owner, name, slow)


@pytest.mark.parametrize("overlap", ["backward", "forward"])
@pytest.mark.parametrize("name", ["read", "write"])
def test_reads_and_writes_of_the_target_are_counted(
    monkeypatch: pytest.MonkeyPatch, clock: Clock, name: str, overlap: str
) -> None:
    """A second each, and nothing of what the loop does beside; reads come with gradients, of which
    not all are timed."""
    busy(monkeypatch, clock, gradients, name)
    model = copy.deepcopy(START)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with thinwire.attach(model, optimizer, overlap=overlap, bucket_bytes=2000) as sync:
        for step in range(20):
            loss_of(model, step, 0).backward()
            clock.work(50)
            optimizer.step()
            optimizer.zero_grad()
        sync.land()
        assert sync.report().beside_s == 20 * len(sync.buckets)
        assert len(sync.buckets) > 1


def test_of_gradients_that_are_timed_now_and_then_the_whole_is_told(
    monkeypatch: pytest.MonkeyPatch, clock: Clock
) -> None:
    """Also where only every eighth pass launches, so that one and the same pass of eight would be
    timed for ever."""
    model = copy.deepcopy(START)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with thinwire.attach(model, optimizer, recipes.accumulation(8), bucket_bytes=2000) as sync:
        for bucket in sync.buckets:
            busy(monkeypatch, clock, bucket, "take")
        for step in range(8 * 11):
            loss_of(model, step, 0).backward()
            if not sync.accumulating:
                optimizer.step()
                optimizer.zero_grad()
        assert sync.report().beside_s == 11 * len(list(model.parameters()))


def test_local_steps_count_once(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> None:
    strategy = recipes.diloco(period=2)
    busy(monkeypatch, clock, type(strategy.on), "write")
    model = copy.deepcopy(START)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with thinwire.attach(model, optimizer, strategy, bucket_bytes=2000) as sync:
        for step in range(6):
            loss_of(model, step, 0).backward()
            clock.work(50)
            optimizer.step()
        assert sync.report().beside_s == 3 * len(sync.buckets)


def test_blocks_in_one_another_count_once(clock: Clock) -> None:
    meter = Meter(1)
    with meter.working():
        clock.work(1)
        with meter.working():
            clock.work(2)
        clock.work(4)
    clock.work(8)
    assert meter.report().beside_s == 7


def test_what_raises_is_counted_and_ends(clock: Clock) -> None:
    meter = Meter(1)

    def fails() -> None:
        with meter.working():
            clock.work(1)
            raise ZeroDivisionError

    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            fails()
    assert meter.report().beside_s == 2


def test_the_report_tells_encode_beside_and_wire() -> None:
    row = Row("bucket 0", 10, 1, 4.0, encode_s=1.0, carry_s=0.25)
    report = Report(2, 1, (row,), 0.0, beside_s=0.5, transport_s=0.125)
    assert report.cpu_s == 1.875
    assert str(report).splitlines()[-1] == (
        "processor time: encode 1.000 s; beside encode: buckets, residuals, copies 0.500 s; wire "
        "0.375 s"
    )


def _over_gloo(rank: int) -> tuple[float, float, float, float, float]:
    """Seconds of a process while it only synchronises, and what the meter has of them: encode,
    beside, lanes, transport."""
    torch.manual_seed(0)
    model = torch.nn.ParameterList([torch.nn.Parameter(torch.randn(500_000)) for _ in range(4)])
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with thinwire.attach(model, optimizer, SPARSE) as sync:
        for param in model:
            param.grad = torch.randn_like(param)
        sync.skip_step()
        before, begun = sync.report(), time.process_time()
        for _ in range(6):
            sync.skip_step()
        spent, after = time.process_time() - begun, sync.report()
        assert after.transport_s > 0 or not thread_ids()
    rows = list(zip(before.rows, after.rows, strict=True))
    lanes = sum(new.carry_s - old.carry_s for old, new in rows)
    encode = sum(new.encode_s - old.encode_s for old, new in rows)
    return (
        spent,
        encode,
        after.beside_s - before.beside_s,
        lanes,
        after.transport_s - before.transport_s,
    )


def test_nearly_all_of_a_process_that_only_synchronises_is_accounted_for() -> None:
    """Over gloo, with residuals: what the codec takes is less than the whole, and the whole is
    told."""
    for spent, *parts in run_ranks(3, _over_gloo):
        assert all(part > 0 for part in parts)
        assert 0.85 * spent < sum(parts) < 1.05 * spent, (spent, parts)


def _fragments(rank: int) -> list[int]:
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with thinwire.attach(
        model, optimizer, Strategy(staggered(3, every(6)), on=deltas(outer=sgd(1.0)))
    ) as sync:
        sent = []
        train(
            model,
            optimizer,
            rank,
            range(12),
            each=lambda _: sent.append(round(sync.report().sent_bytes)),
        )
        assert len(sync.buckets) >= 3
        total = 2 * 4 * sum(bucket.spec.numel for bucket in sync.buckets)
        assert sent[-1] == total  # K = 2: all of the model, twice in two periods
    return [later - earlier for earlier, later in zip([0, *sent], sent, strict=False)]


def test_staggered_fragments_spread_the_same_bytes():
    for sent in run_ranks(2, _fragments):
        busy = [step for step, count in enumerate(sent) if count]
        assert busy == [1, 3, 5, 7, 9, 11]
        assert max(sent) < sum(sent) / 4


def _report(rank: int, strategy: Strategy) -> tuple[float, float, str]:
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with thinwire.attach(
        model, optimizer, strategy, bucket_bytes=2000, slice_bytes=1000, lanes=2
    ) as sync:
        train(model, optimizer, rank, range(5))
        ctx = RankContext(rank, tuple(range(sync.driver.world)), 0, 0)
        closed = sum(
            strategy.how.sent_nbytes(strategy.what, part.spec, ctx) * 5
            for bucket in sync.buckets
            for part in bucket.slices
        )
        return sync.report().sent_bytes, closed, str(sync.report())


@pytest.mark.parametrize(
    "strategy",
    [
        Strategy(),
        Strategy(what=feedback(uniform(4)), how=gather()),
        Strategy(what=cast(), how=native()),
    ],
)
@pytest.mark.parametrize("world", [2, 3])
def test_the_meter_is_the_closed_form(strategy, world):
    for sent, closed, table in run_ranks(world, _report, strategy):
        assert sent == pytest.approx(closed, abs=1e-6)
        assert "bucket 0" in table
        assert "x fewer than dense" in table
