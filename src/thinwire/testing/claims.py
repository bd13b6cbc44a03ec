"""Check what a codec's traits claim: `randomised`, `row_wise`, `divides` and `unbiased`."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from thinwire.core import Codec, Part, Sectioned, Spec
from thinwire.testing.cases import RANKS, contexts, inputs, inputs_by_rank, require, same
from thinwire.testing.residuals import Bound
from thinwire.testing.rounds import fresh_states, run_rounds

_DRAWS = 300
_SIGMAS = 6


def check_seeds(codec: Codec, spec: Spec) -> None:
    """Check that a randomised codec draws other numbers at another step, and from another seed."""
    xs = inputs_by_rank(spec)["normal"]

    def total(step: int, seed: int) -> Tensor:
        at = contexts(step, seed)
        return (
            run_rounds(codec, xs, spec, fresh_states(codec, spec, at), at, "normal values")
            .outcomes[RANKS[0]]
            .total
        )

    # The same input in fresh state each time, so that only the draws can differ.
    first = total(0, 0)
    require(
        not same(first, total(1, 0)),
        codec,
        "another step draws other random numbers",
        "normal values",
        "it drew the same",
    )
    require(
        not same(first, total(0, 1)),
        codec,
        "another seed draws other random numbers",
        "normal values",
        "it drew the same",
    )


def check_rows(codec: Codec) -> None:
    """Check that a row arrives with the same bits after all other rows have changed."""
    spec = Spec((Part("matrix", (6, 40), 0, "matrix"),), 0, 240, torch.float32)
    ctx = replace(contexts()[RANKS[0]], group=(RANKS[0],))
    x = inputs(spec, ctx.rank)["normal"]
    other = x * 7
    other[80:120] = x[80:120]
    arrived = []
    for values in (x, other):
        states, at = {ctx.rank: codec.init(spec, ctx)}, {ctx.rank: ctx}
        flight = run_rounds(codec, {ctx.rank: values}, spec, states, at, "six rows")
        arrived.append(flight.outcomes[ctx.rank].total[80:120])
    require(same(*arrived), codec, "a row depends on no other", "six rows")


def check_divides(codec: Codec, spec: Spec) -> None:
    """Check that a span's payload, section by section, is those of its runs, one behind the
    other."""
    case = "many parts, cut in four"
    spans = spec.cut(4, codec.traits.grain)
    state = codec.init(spec, contexts()[RANKS[0]])
    states = [codec.init(span, contexts()[RANKS[0]]) for span in spans]
    for step in range(2):
        ctx = contexts(step)[RANKS[0]]
        x = inputs(spec, ctx.rank)["normal"]
        whole = next(codec.rounds(x, spec, state, ctx))
        runs = [
            next(codec.rounds(x[span.begin : span.end], span, own, ctx))
            for span, own in zip(spans, states, strict=True)
        ]
        coder = whole.coder
        require(isinstance(coder, Sectioned), codec, "a payload divides", case, "no sections")
        assert isinstance(coder, Sectioned)
        cut = [run.payload.split(list(coder.sections(run.spec))) for run in runs]
        joined = torch.cat([torch.cat(section) for section in zip(*cut, strict=True)])
        require(same(whole.payload, joined), codec, "a payload divides", case, f"step {step}")
        sums = [run.open(run.payload.clone(), ctx.rank) for run in runs]
        opened = whole.open(whole.payload.clone(), ctx.rank)
        require(same(opened, torch.cat(sums)), codec, "a payload divides", case)


def check_mean(codec: Codec, allowed: Bound, spec: Spec) -> None:
    """Check that the mean of many draws is x within chance, value by value and along x."""
    rank = RANKS[0]
    x = inputs(spec, rank)["normal"]
    drawn = []
    for draw in range(_DRAWS):
        ctx = replace(contexts(draw % 50, draw // 50)[rank], group=(rank,))
        flight = run_rounds(
            codec,
            {rank: x},
            spec,
            fresh_states(codec, spec, {rank: ctx}),
            {rank: ctx},
            "normal values",
        )
        drawn.append(flight.outcomes[rank].total.double())
    sent, x = torch.stack(drawn), x.double()  # (draws, numel)
    # A value near a level may never be drawn to the farther one.
    rare = 10 * allowed(x, spec, ctx).max() / _DRAWS
    off = (sent.mean(0) - x).abs() - _SIGMAS * sent.std(0) / _DRAWS**0.5 - rare
    require(
        bool((off <= 0).all()),
        codec,
        "unbiased",
        "cut parts",
        f"the mean of {_DRAWS} draws is off by {off.max():g} more than chance",
    )
    along = sent @ x
    off = (along.mean() - x @ x).abs() / (along.std() / _DRAWS**0.5 + 1e-6 * (x @ x))
    require(
        float(off) <= _SIGMAS,
        codec,
        "unbiased",
        "cut parts",
        f"the mean of {_DRAWS} draws along x is off by {off:.1f} sigma",
    )
