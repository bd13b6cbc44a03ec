"""Check the laws of every codec."""

from __future__ import annotations

import copy
import zlib
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from thinwire.core import Codec, Coder, RankContext, Spec, State
from thinwire.kernels import reference
from thinwire.testing.cases import (
    INPUTS,
    RANKS,
    contexts,
    inputs,
    inputs_by_rank,
    require,
    same,
    snapshot,
    specs,
)
from thinwire.testing.claims import check_divides, check_mean, check_rows, check_seeds
from thinwire.testing.hostile import check_bytes, check_non_finite
from thinwire.testing.residuals import Bound, residual, rounded_off, values_kept
from thinwire.testing.rounds import FlightRecord, add_up, fresh_states, run_rounds

_STEPS = 3


def check_codec(
    codec: Codec,
    *,
    error_bound: Bound | None = None,
    unbiased: bool | None = None,
    randomised: bool | None = None,
    every_input: bool = True,
) -> None:
    """Try every law of a codec on awkward spans and values, three ranks at a time.

    Laws: dtype, shape and device survive; `x` and old state tensors stay as they are; payloads are
    flat bytes, as many as stated; the error is within its bound, not zero where the codec is lossy,
    and zero where it is not; residual + sent = x + decay · old residual; the sum over ranks of
    `sent` is the total; payloads that may be added are added; the same step and seed give the same
    bytes, others draw other random numbers; the mean over seeds is x where unbiased; a row depends
    on no other where row-wise; a payload divides where it says so; a non-finite value arrives and
    leaves no trace; cut or corrupted bytes raise PayloadError or decode to the right shape.

    Args:
        codec: the member.
        error_bound: |sent - x| allowed of each value, from (x, spec, ctx); else the codec's own.
        unbiased: whether E[sent] = x; else as its traits say.
        randomised: whether what is sent depends on step and seed; else as its traits say.
        every_input: whether each span gets all values; else all go to one span, and the others get
            three, and each non-finite value stands at one index, chosen by the codec's repr. It
            takes a third of the time.

    Raises:
        AssertionError: a law is broken; it names the law, the member and the input.
        TypeError: no error bound is known for this codec.

    Example:
        >>> from thinwire.what import uniform
        >>> check_codec(uniform(bits=4, block=32))
        >>> check_codec(uniform(bits=4, block=32), unbiased=True)
        Traceback (most recent call last):
        AssertionError: uniform(bits=4, ...) breaks the law 'unbiased' on cut parts: ...
    """
    allowed: Bound = error_bound or codec.error_bound
    # 1. One flight of every awkward span and input.
    for name, spec in specs().items():
        if spec.numel and not spec.parts and not isinstance(codec, Coder):
            continue  # only the core of a chain has no parts, and only a coder can say one
        for label, xs in inputs_by_rank(spec).items():
            if every_input or name == "many parts" or label in _chosen(codec, name):
                _flight(codec, allowed, spec, xs, f"{name}, {label}")
    # 2. Slices on their own, and several flights on one state.
    many = specs()["many parts"]
    for span in many.cut(4, codec.traits.grain):
        _flight(
            codec,
            allowed,
            span,
            inputs_by_rank(span)["normal"],
            f"the span {span.begin} to {span.end} of many parts, alone",
        )
    _loses(codec, many)
    _steps(codec, allowed, many)
    # 3. Laws that the codec's traits claim.
    if codec.traits.randomised if randomised is None else randomised:
        check_seeds(codec, many)
    if codec.traits.unbiased if unbiased is None else unbiased:
        check_mean(codec, allowed, specs()["cut parts"])
    if codec.traits.row_wise:
        check_rows(codec)
    if codec.traits.divides:
        check_divides(codec, many)
    # 4. What is not finite, and what is corrupted.
    check_non_finite(codec, allowed, many, every_input)
    for name in ("many parts", "cut parts", "one value", "bfloat16"):
        check_bytes(codec, specs()[name], name)


def _chosen(codec: Codec, span: str) -> set[str]:
    """Choose three sorts of values for a span, other ones for other codecs: pairs of a span and
    values are then all tried by some codec."""
    first = zlib.crc32(f"{codec!r}/{span}".encode())
    return {INPUTS[(first + step) % len(INPUTS)] for step in (0, 2, 5)}


def _flight(
    codec: Codec,
    allowed: Bound,
    spec: Spec,
    xs: Mapping[int, Tensor],
    case: str,
    states: dict[int, State] | None = None,
    step: int = 0,
) -> None:
    """One flight, and every law that a single flight can break."""
    # 1. Note all that must not change, and what the residual may add.
    at = contexts(step)
    states = states if states is not None else fresh_states(codec, spec, at)
    held = {rank: snapshot(state) for rank, state in states.items()}
    loudest = max(
        (
            float(leaf.flat.double().abs().max())
            for s in states.values()
            for _, leaf in s.walk()
            if leaf.flat.numel()
        ),
        default=0.0,
    )
    faded = {
        rank: residual(codec, state, spec, at[rank], faded=True).nan_to_num()
        for rank, state in states.items()
    }
    before = {rank: x.clone() for rank, x in xs.items()}
    meant = {rank: values_kept(codec, x, spec, states[rank], at[rank]) for rank, x in xs.items()}

    # 2. The flight of three ranks.
    flight = run_rounds(codec, xs, spec, states, at, case)
    totals, sent = {}, {}
    # 3. The laws of each rank.
    for rank, outcome in flight.outcomes.items():
        total = outcome.total
        right = (
            total.shape == (spec.numel,)
            and total.dtype == spec.work
            and total.device == xs[rank].device
        )
        require(
            right,
            codec,
            "the total is flat, in the work dtype",
            case,
            f"it is {tuple(total.shape)} {total.dtype}",
        )
        must = codec.traits.lossy and spec.numel > 0
        require(
            outcome.sent is not None or not must, codec, "a lossy codec says what it sent", case
        )
        totals[rank] = total
        sent[rank] = (
            outcome.sent()
            if outcome.sent is not None
            else before[rank].to(spec.dtype).to(spec.work)
        )
        require(
            same(xs[rank], before[rank]),
            codec,
            "x stays as it is",
            case,
            f"rank {rank} wrote into it",
        )
        for path, value, copied in held[rank]:
            require(
                same(value, copied),
                codec,
                "state is replaced, never written into",
                case,
                f"{path} of rank {rank} was",
            )
        late = bool(faded[rank].any())  # part of the residual is sent now
        expected = meant[rank] + faded[rank] if late else before[rank]
        _within(
            codec,
            allowed,
            expected,
            sent[rank],
            spec,
            at[rank],
            case,
            4 * torch.finfo(spec.work).eps if late else 0.0,
        )
        _keeps(
            codec,
            meant[rank],
            faded[rank],
            sent[rank],
            residual(codec, states[rank], spec, at[rank], faded=False),
            case,
        )

    # 4. The laws of all ranks together.
    require(
        all(same(total, totals[RANKS[0]]) for total in totals.values()),
        codec,
        "all ranks end with the same bits",
        case,
    )
    _adds_up(codec, totals[RANKS[0]], sent, loudest, case)
    _sizes(codec, flight, spec, case)
    _sums(codec, flight, case)


def _repeats(
    codec: Codec,
    xs: Mapping[int, Tensor],
    spec: Spec,
    states: dict[int, State],
    at: dict[int, RankContext],
    case: str,
) -> None:
    first, echo = (run_rounds(codec, xs, spec, copy.deepcopy(states), at, case) for _ in range(2))
    alike = all(
        same(a[rank], b[rank])
        for a, b in zip(first.payloads, echo.payloads, strict=True)
        for rank in a
    )
    require(alike, codec, "the same step and seed give the same bytes", case)


def _within(
    codec: Codec,
    allowed: Bound,
    expected: Tensor,
    sent: Tensor,
    spec: Spec,
    ctx: RankContext,
    case: str,
    slack: float,
) -> None:
    most = allowed(expected, spec, ctx).double() + slack * expected.double().abs()
    error = (sent.double() - expected.double()).abs()
    # `~(error <= most)`, and not `error > most`: a NaN must fail.
    bad = (~(error <= most)).nonzero().view(-1).tolist()
    why = (
        f"value {bad[0]} of {expected[bad[0]]:g} was sent as {sent[bad[0]]:g}, "
        f"allowed {most[bad[0]]:g}"
        if bad
        else ""
    )
    require(
        not bad,
        codec,
        "the error is within its bound" if codec.traits.lossy else "what is lossless loses nothing",
        case,
        why,
    )


def _keeps(
    codec: Codec, x: Tensor, faded: Tensor, sent: Tensor, left_over: Tensor, case: str
) -> None:
    """Check that what is kept (not NaN) is exactly what was not sent."""
    off = (left_over.double() + sent.double() - x.double() - faded.double()).abs()
    info = torch.finfo(sent.dtype)
    # Room for rounding, and for what a narrow store of the residual rounds off.
    room = (
        4 * info.eps * (x.double().abs() + faded.double().abs() + sent.double().abs()) + info.tiny
    )
    room += rounded_off(codec, left_over)
    fine = (off <= room) | left_over.isnan() | ~sent.isfinite().all()
    require(
        bool(fine.all()),
        codec,
        "residual + sent = x + decay · old residual",
        case,
        f"not so for {int((~fine).sum())} values",
    )


def _adds_up(
    codec: Codec, total: Tensor, sent: Mapping[int, Tensor], loudest: float, case: str
) -> None:
    summed = torch.stack([own.double() for own in sent.values()])
    size = summed.abs().sum(0)
    # Sums of float32 in any order, of values that may cancel, and of residuals as large as
    # `loudest`.
    room = 1e-5 * size.max() if size.numel() else size
    room = room + 1e-5 * loudest
    off = (total.double() - summed.sum(0)).abs()
    law = bool(((off <= room) | ~size.isfinite()).all())
    require(
        law,
        codec,
        "the sum over ranks of `sent` is the total"
        if codec.traits.lossy
        else "what is lossless loses nothing",
        case,
    )


def _sizes(codec: Codec, flight: FlightRecord, spec: Spec, case: str) -> None:
    exact, most = codec.nbytes(spec), codec.max_nbytes(spec)
    for rank in RANKS:
        nbytes = sum(payloads[rank].numel() for payloads in flight.payloads)
        fits = nbytes == exact if exact is not None else nbytes <= most
        require(
            fits,
            codec,
            "a flight has the bytes that nbytes states",
            case,
            f"{nbytes} bytes, stated {exact}, at most {most}",
        )


def _sums(codec: Codec, flight: FlightRecord, case: str) -> None:
    """Check that, where payloads may be added unopened, the sum opens to the sum of what they open
    to."""
    for packets, payloads in zip(flight.rounds, flight.payloads, strict=True):
        packet = packets[RANKS[0]]
        runs, at = [torch.empty(0, dtype=torch.uint8)], 0
        for nbytes, dtype in packet.sums:
            numbers = [
                reference.from_bytes(payloads[rank][at : at + nbytes].clone(), dtype)
                for rank in RANKS
            ]
            runs.append(reference.as_bytes(numbers[0] + numbers[1] + numbers[2]))
            at += nbytes
        if at != packet.payload.numel() or not at:
            continue
        opened = packet.open(torch.cat(runs), RANKS[0]).double()
        size = torch.stack(
            [
                packet.open(payload.clone(), rank).double().abs()
                for rank, payload in payloads.items()
            ]
        ).sum(0)
        floats = [torch.finfo(dtype) for _, dtype in packet.sums if dtype.is_floating_point]
        room = max((2 * info.eps for info in floats), default=1e-6) * size + max(
            (info.tiny for info in floats), default=0.0
        )
        off = (opened - add_up(packet, payloads).double()).abs()
        fine = (off <= room) | ~(size < min((info.max for info in floats), default=float("inf")))
        require(
            bool(fine.all()),
            codec,
            "a sum of payloads opens to the sum",
            case,
            f"not so for {int((~fine).sum())} values",
        )


def _loses(codec: Codec, spec: Spec) -> None:
    """Check that a rank alone receives its own values: exactly if lossless, and changed if
    lossy."""
    rank = RANKS[0]
    alone = {rank: replace(contexts()[rank], group=(rank,))}
    for label, x in inputs(spec, rank).items():
        total = (
            run_rounds(codec, {rank: x}, spec, fresh_states(codec, spec, alone), alone, label)
            .outcomes[rank]
            .total
        )
        exact = torch.equal(total, x.to(spec.dtype).to(spec.work))
        require(
            exact or codec.traits.lossy, codec, "what is lossless loses nothing", f"{label} values"
        )
        # A lossy codec that changes nothing here would pass every other law without proving any.
        require(
            not exact or not codec.traits.lossy or codec.traits.exact_at_first or label != "normal",
            codec,
            "what is lossy loses something",
            f"{label} values",
        )


def _steps(codec: Codec, allowed: Bound, spec: Spec) -> None:
    """State goes from flight to flight, and every law holds on the way."""
    states = fresh_states(codec, spec, contexts())
    for step in range(_STEPS):
        xs = {
            rank: x * (step + 1)
            for rank, x in inputs_by_rank(spec)["normal" if step % 2 else "wide range"].items()
        }
        _repeats(codec, xs, spec, states, contexts(step), f"many parts, flight {step}")
        _flight(codec, allowed, spec, xs, f"many parts, flight {step}", states, step)
