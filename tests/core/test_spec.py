"""Spans and the contexts of ranks."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from thinwire.core import Grain, Part, RankContext, Spec

sizes = st.lists(st.integers(0, 30), max_size=6)


def span_of(numels: list[int], low: int = 0, high: int | None = None) -> Spec:
    parts, at = [], 0
    for i, numel in enumerate(numels):
        parts.append(Part(f"p{i}", (numel,), at, "vector"))
        at += numel
    return Spec(tuple(parts), 0, at, torch.float32).span(low, at if high is None else high)


@given(
    numels=sizes,
    ends=st.tuples(st.integers(0, 200), st.integers(0, 200)),
    ways=st.integers(1, 9),
    grain=st.integers(1, 20) | st.sampled_from(["part", "bucket"]),
)
def test_cuts_cover_the_span_in_order_at_the_grain(
    numels: list[int], ends: tuple[int, int], ways: int, grain: Grain
) -> None:
    low, high = sorted(min(end, sum(numels)) for end in ends)
    spec = span_of(numels, low, high)
    runs = spec.cut(ways, grain)
    assert len(runs) == ways
    assert runs[0].begin == spec.begin
    assert runs[-1].end == spec.end
    assert all(a.end == b.begin for a, b in pairwise(runs))
    assert [
        p
        for run in runs
        for p in [
            (q.part, run.begin + q.at + k) for q in run.extents() for k in range(q.high - q.low)
        ]
    ] == [(q.part, spec.begin + q.at + k) for q in spec.extents() for k in range(q.high - q.low)]
    inner = [run.begin for run in runs[1:] if spec.begin < run.begin < spec.end]
    if isinstance(grain, int):
        assert all((mark - spec.begin) % grain == 0 for mark in inner)
        assert max(run.numel for run in runs) - min(run.numel for run in runs) < 2 * grain
    elif grain == "part":
        assert all(
            extent.whole or extent.part.begin < spec.begin or extent.part.end > spec.end
            for run in runs
            for extent in run.extents()
        )
    else:
        assert inner == []


def test_a_key_survives_another_layout() -> None:
    part = Part("w", (10,), 5, "vector")
    moved = replace(part, begin=100)
    assert (
        Spec((part,), 5, 10, torch.float32).span(8, 12).key
        == Spec((moved,), 100, 10, torch.float32).span(103, 107).key
        == "w@3"
    )
    assert Spec((), 0, 0, torch.float32).key == "empty"


@pytest.mark.parametrize(
    ("dtype", "work"),
    [
        (torch.float32, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.float32),
        (torch.float64, torch.float64),
    ],
)
def test_sums_are_in_float32_or_wider(dtype: torch.dtype, work: torch.dtype) -> None:
    assert Spec((), 0, 1, dtype).work == work


def test_others_come_in_the_order_of_a_phased_exchange() -> None:
    assert RankContext(5, (1, 2, 5, 7), 0, 0).others == (7, 1, 2)
    assert RankContext(5, (1, 2, 5, 7), 0, 0).group_rank == 2


def test_draws_are_keyed_by_everything_that_tells_speakers_apart() -> None:
    ctx, spec = RankContext(1, (1, 2), 3, 4, "key"), span_of([10, 10])

    def drawn(ctx: RankContext, spec: Spec, shared: bool) -> float:
        return float(
            torch.rand((), generator=ctx.generator(spec, shared=shared), dtype=torch.float64)
        )

    changes = [
        replace(ctx, step=9),
        replace(ctx, seed=9),
        replace(ctx, key="other"),
        ctx.child("back"),
    ]
    for shared in (True, False):
        first = drawn(ctx, spec, shared)
        assert drawn(replace(ctx), spec, shared) == first
        assert all(drawn(changed, spec, shared) != first for changed in changes)
        assert drawn(ctx, spec.span(10, 20), shared) != first
        assert (drawn(replace(ctx, rank=2), spec, shared) == first) == shared
        assert (
            drawn(replace(ctx, group=(1, 2, 3)), spec, shared) == first
        )  # the world's size moves nothing


def test_numbers_for_rounding_are_one_a_value_and_each_ranks_own() -> None:
    spec = Spec((), 0, 9, torch.float32)
    one, two = (RankContext(rank, (0, 1), 3, 7, "key") for rank in (0, 1))
    bits = one.random_bits(spec)
    assert bits.shape == (9,)
    assert torch.equal(bits, one.random_bits(spec))
    assert not torch.equal(bits, two.random_bits(spec))
    assert torch.equal(one.noise(spec), (bits + 0.5) / 65536)
