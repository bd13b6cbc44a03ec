"""Check what a codec does with values that are no numbers, and with bytes that are not its own."""

from __future__ import annotations

import zlib

import torch
from torch import Tensor

from thinwire.core import Codec, Packet, Spec
from thinwire.errors import PayloadError
from thinwire.testing.cases import RANKS, contexts, inputs, require, same
from thinwire.testing.residuals import Bound, residual
from thinwire.testing.rounds import run_rounds
from thinwire.what import feedback

_FUZZ = 8


def check_non_finite(codec: Codec, allowed: Bound, spec: Spec, every_input: bool = True) -> None:
    """Check that a non-finite value arrives at its index (unless dropped), spoils no other number,
    and leaves no trace; each value at every index, or at one, another one for other codecs."""
    indices = (0, spec.numel // 2, spec.numel - 1)
    turn = zlib.crc32(repr(codec).encode())
    for number, value in enumerate((float("nan"), float("inf"), -float("inf"))):
        for index in indices if every_input else (indices[(turn + number) % 3],):
            _one_bad_value(codec, allowed, spec, value, index)


def _one_bad_value(codec: Codec, allowed: Bound, spec: Spec, value: float, index: int) -> None:
    case = f"many parts with {value} at {index} on rank {RANKS[1]}"
    states = {rank: codec.init(spec, ctx) for rank, ctx in contexts().items()}
    xs = {rank: inputs(spec, rank)["normal"] for rank in RANKS}
    run_rounds(codec, xs, spec, states, contexts(0), case)
    before = residual(codec, states[RANKS[1]], spec, contexts(1)[RANKS[1]], faded=False)

    fine = xs[RANKS[1]]
    xs[RANKS[1]] = fine.clone()
    xs[RANKS[1]][index] = value
    outcomes = run_rounds(codec, xs, spec, states, contexts(1), case).outcomes
    own = outcomes[RANKS[1]]
    sent = own.sent() if own.sent is not None else xs[RANKS[1]]
    for what, result in (("sent", sent), ("total", own.total)):
        left_out = codec.traits.drops and (what == "total" or float(result[index]) == 0)
        require(
            left_out or not result[index].isfinite(),
            codec,
            "a non-finite value arrives",
            case,
            f"{what} is {result[index]:g} there",
        )
    if before.isnan().all():  # with feedback, what is sent is not x
        zeroed = fine.clone()
        zeroed[index] = 0
        wrong = sent.isfinite() & ~(
            (sent.double() - zeroed.double()).abs() <= allowed(zeroed, spec, contexts(1)[RANKS[1]])
        )
        wrong[index] = False
        require(
            not wrong.any(),
            codec,
            "a non-finite value makes no finite garbage",
            case,
            f"at {wrong.nonzero().view(-1).tolist()[:5]}",
        )
    after = residual(codec, states[RANKS[1]], spec, contexts(1)[RANKS[1]], faded=False)
    untouched = (
        same(after, before) if isinstance(codec, feedback) else same(after[index], before[index])
    )
    require(untouched, codec, "a non-finite value leaves its residual as it was", case)

    xs[RANKS[1]] = fine
    total = run_rounds(codec, xs, spec, states, contexts(2), case).outcomes[RANKS[0]].total
    require(
        bool(total.isfinite().all()),
        codec,
        "a non-finite value leaves no trace in the flights to come",
        case,
    )


def check_bytes(codec: Codec, spec: Spec, case: str) -> None:
    """Check that a payload that was cut or grew raises PayloadError, and that a corrupted one
    raises it or decodes to the right shape."""
    states = {rank: codec.init(spec, ctx) for rank, ctx in contexts().items()}
    xs = {rank: inputs(spec, rank)["normal"] for rank in RANKS}
    result = run_rounds(codec, xs, spec, states, contexts(), case)
    # Every packet of a flight, from another rank than the one that opens it.
    for packets, payloads in zip(result.rounds, result.payloads, strict=True):
        packet, payload = packets[RANKS[0]], payloads[RANKS[1]]
        if payload.numel():
            _must_raise(codec, packet, payload[:-1], f"{case}, the last byte cut off")
        _must_raise(
            codec, packet, torch.cat([payload, payload.new_zeros(1)]), f"{case}, a byte too many"
        )
        # Any other error than PayloadError would end a run with a riddle.
        for fuzzed in _fuzz(payload):
            try:
                opened = packet.open(fuzzed, RANKS[1])
            except PayloadError:
                continue
            except Exception as error:
                require(
                    False,
                    codec,
                    "corrupted bytes raise PayloadError or decode",
                    case,
                    f"{type(error).__name__}: {error}",
                )
            else:
                require(
                    opened.shape == (packet.spec.numel,),
                    codec,
                    "corrupted bytes decode to the right shape",
                    case,
                )


def _must_raise(codec: Codec, packet: Packet, payload: Tensor, case: str) -> None:
    try:
        packet.open(payload.clone(), RANKS[1])
    except PayloadError:
        return
    require(False, codec, "a payload of the wrong length raises PayloadError", case, "it decoded")


def _fuzz(payload: Tensor) -> list[Tensor]:
    """Return the payload with all bits set, with random bytes, and with its first bytes
    inverted."""
    generator = torch.Generator().manual_seed(0)
    noise = [
        torch.randint(0, 256, (payload.numel(),), generator=generator, dtype=torch.uint8)
        for _ in range(_FUZZ)
    ]
    flipped = payload.clone()
    flipped[:9] ^= 255
    return [torch.full_like(payload, 255), flipped, *noise]
