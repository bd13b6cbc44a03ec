"""The signatures, proved on bare flights: three buckets, several steps, one function for each
rank's part and one that judges them all.

`proof.fly(driver)` is one rank's part, on any `Driver`: threads and a `Fabric`, or processes and a
process group. It returns what that rank saw, as plain tensors. `proof.judge(records)` takes the
records of all ranks, in rank order, and asserts what must hold.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from thinwire.core import Codec, Driver, Part, RankContext, Role, Route, Spec
from thinwire.how import gather, hierarchical, native, two_shot
from thinwire.what import cast, feedback, lowrank, threshold, topk, uniform

STEPS = 4


@dataclass
class Record:
    """What one rank saw: totals by (step, bucket), residuals at the end by bucket, bytes handed to
    the wire and stated."""

    totals: dict[tuple[int, int], Tensor] = field(default_factory=dict)
    kept: dict[int, Tensor] = field(default_factory=dict)
    sent_bytes: dict[tuple[int, int], float] = field(default_factory=dict)
    stated_bytes: dict[int, float | None] = field(default_factory=dict)


@dataclass(frozen=True)
class Proof:
    """A route and a codec, on `world` ranks; each flight lands `delay` steps after its launch."""

    world: int
    route: Route
    codec: Codec
    judge: Callable[[Proof, list[Record]], None]
    say: Callable[[int, int, int], Tensor]
    delay: int = 0

    def fly(self, driver: Driver) -> Record:
        record, group = Record(), tuple(range(driver.world))
        driver.prepare(self.route.groups(driver.world))
        states = {
            b: self.route.init(self.codec, spec, self._context(driver, group, 0, b))
            for b, spec in SPECS.items()
        }
        air = {}
        for step in range(STEPS + self.delay):
            for b, spec in SPECS.items():
                if step < STEPS:
                    ctx, x = self._context(driver, group, step, b), self.say(driver.rank, step, b)
                    flight = self.route.carry(self.codec, x, spec, states[b], ctx)
                    air[step, b] = driver.start(
                        flight, b % driver.lanes, f"bucket {b} of step {step}"
                    )
                    record.stated_bytes[b] = self.route.sent_nbytes(self.codec, spec, ctx)
            for b in SPECS:
                if step >= self.delay:
                    handle = air.pop((step - self.delay, b))
                    record.totals[step - self.delay, b] = handle.wait().total.clone()
                    record.sent_bytes[step - self.delay, b] = handle.sent_bytes
        for b, spec in SPECS.items():
            record.kept[b] = torch.zeros(spec.numel)
            for path, leaf in states[b].walk():
                if path.endswith("residual") and leaf.spec is not None:
                    record.kept[b][leaf.spec.begin : leaf.spec.end] += leaf.value
        return record

    def _context(
        self, driver: Driver, group: tuple[int, ...], step: int, bucket: int
    ) -> RankContext:
        return RankContext(driver.rank, group, step, 7, f"bucket {bucket}")


def _bucket(*shapes: tuple[Role, tuple[int, ...]]) -> Spec:
    parts, at = [], 0
    for i, (role, shape) in enumerate(shapes):
        parts.append(Part(f"p{i}.{role}.{shape}", shape, at, role))
        at = parts[-1].end
    return Spec(tuple(parts), 0, at, torch.float32)


SPECS = {
    0: _bucket(("matrix", (16, 12)), ("vector", (16,))),
    1: _bucket(("embedding", (30, 4)), ("matrix", (10, 24)), ("vector", ())),
    2: _bucket(("vector", (7,)), ("vector", (5,))),
}


def normal(rank: int, step: int, bucket: int) -> Tensor:
    """What a rank says: noise, the same wherever it runs."""
    return torch.randn(
        SPECS[bucket].numel,
        generator=torch.Generator().manual_seed(1000 * step + 10 * rank + bucket),
    )


def little(rank: int, step: int, bucket: int) -> Tensor:
    """Nothing at first, then one rank alone, then all."""
    speaks = step >= 2 or (step == 1 and rank == 1)
    return normal(rank, step, bucket) * speaks


# -- what must hold
# --------------------------------------------------------------------------------------------------


def _said(proof: Proof, step: int, bucket: int) -> Tensor:
    return torch.stack([proof.say(rank, step, bucket) for rank in range(proof.world)]).sum(0)


def _agree(records: list[Record]) -> None:
    for record in records[1:]:
        assert all(torch.equal(total, records[0].totals[at]) for at, total in record.totals.items())


def _nothing_is_lost(proof: Proof, records: list[Record]) -> None:
    """What was heard plus what all ranks still keep is what was said; and something is kept, so the
    lossy branch ran."""
    for b in SPECS:
        said = torch.stack([_said(proof, step, b) for step in range(STEPS)]).sum(0)
        heard = torch.stack([records[0].totals[step, b] for step in range(STEPS)]).sum(0)
        kept = torch.stack([record.kept[b] for record in records]).sum(0)
        assert torch.allclose(heard + kept, said, atol=1e-4), (
            f"bucket {b} is off by {(heard + kept - said).abs().max()}"
        )


def _bytes_are_as_stated(records: list[Record]) -> None:
    for record in records:
        for (_, b), sent in record.sent_bytes.items():
            assert record.stated_bytes[b] is None or abs(sent - record.stated_bytes[b]) < 1e-6


def judge_powersgd(proof: Proof, records: list[Record]) -> None:
    _agree(records)
    _bytes_are_as_stated(records)
    _nothing_is_lost(proof, records)
    for step in range(STEPS):
        matrix = records[0].totals[step, 0][:192].view(16, 12)
        assert torch.linalg.matrix_rank(matrix, rtol=1e-4) == 2
        assert torch.allclose(records[0].totals[step, 2], _said(proof, step, 2), atol=1e-5), (
            "vectors travel whole"
        )
    assert all(record.kept[0][:192].any() and not record.kept[2].any() for record in records)


def judge_two_sided(proof: Proof, records: list[Record]) -> None:
    _agree(records)
    _bytes_are_as_stated(records)
    _nothing_is_lost(proof, records)
    assert all(record.kept[b].any() for record in records for b in SPECS)


def judge_data_sized(proof: Proof, records: list[Record]) -> None:
    _agree(records)
    _nothing_is_lost(proof, records)
    lengths = {gather: 8 * (proof.world - 1), two_shot: 2 * 8 * (proof.world - 1)}[
        type(proof.route)
    ]
    for rank, record in enumerate(records):
        for b in SPECS:
            assert record.stated_bytes[b] is None
            assert record.sent_bytes[0, b] == lengths, "nothing to say: lengths alone"
            assert not record.totals[0, b].any()
        assert (record.sent_bytes[1, 0] > lengths) == (
            rank == 1 or type(proof.route) is two_shot
        ), "one rank alone had something to say"
        assert record.sent_bytes[2, 0] > lengths


def judge_two_levels(proof: Proof, records: list[Record]) -> None:
    _agree(records)
    _bytes_are_as_stated(records)
    for b in SPECS:
        said = torch.stack([_said(proof, step, b) for step in range(STEPS)]).sum(0)
        heard = torch.stack([records[0].totals[step, b] for step in range(STEPS)]).sum(0)
        kept = torch.stack([record.kept[b] for record in records]).sum(0)
        off = (heard + kept - said).abs()
        assert 0 < off.max() < 0.05 * said.abs().max(), (
            "bf16 inside the nodes is lost, 4 bits between them are kept"
        )
        assert kept.any()


def judge_delayed(proof: Proof, records: list[Record]) -> None:
    _agree(records)
    _bytes_are_as_stated(records)
    _nothing_is_lost(proof, records)


PROOFS = {
    "powersgd over three buckets": Proof(3, native(), feedback(lowrank(2)), judge_powersgd, normal),
    "powersgd over three buckets, gathered": Proof(
        3, gather(), feedback(lowrank(2)), judge_powersgd, normal
    ),
    "two-sided feedback": Proof(
        3,
        two_shot(back=feedback(uniform(2, block=4))),
        feedback(uniform(2, block=8)),
        judge_two_sided,
        normal,
    ),
    "data-sized payload, the empty one included": Proof(
        3, gather(), feedback(threshold(1.5)), judge_data_sized, little
    ),
    "data-sized payload both ways": Proof(
        3,
        two_shot(back=feedback(threshold(1.0))),
        feedback(threshold(1.5)),
        judge_data_sized,
        little,
    ),
    "two-level route with a codec per level": Proof(
        4,
        hierarchical((two_shot(), cast("bf16")), gather(), node=2),
        feedback(uniform(4, block=8)),
        judge_two_levels,
        normal,
    ),
    "three flights of a bucket in the air": Proof(
        3, gather(), feedback(topk(0.2)), judge_delayed, normal, delay=2
    ),
}
