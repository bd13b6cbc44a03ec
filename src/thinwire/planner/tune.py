"""Choose a codec for a gradient: error against bytes over a list, and the best that fits."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from thinwire.core import Codec, RankContext, Spec
from thinwire.core.component import inside
from thinwire.errors import ConfigError
from thinwire.planner.codecs import SEED, laid, round_trip
from thinwire.strategy.reading import spelled
from thinwire.what import budget

_EVERY = "(0, 2, 3, 4, 5, 6, 7, 8)"
CHOICES = (
    *(
        "cast('bf16')",
        "fp8()",
        "nf4()",
        "fp4()",
        "loglevels(4)",
        "sign()",
        "ternary(rounding='nearest')",
    ),
    *(f"uniform({bits})" for bits in range(2, 9)),
    *(f"uniform({bits}, scale='mse')" for bits in (2, 3, 4)),
    *(f"hadamard(256) >> uniform({bits})" for bits in (2, 3, 4, 5, 6, 8)),
    *(f"budget({bits}, {_EVERY})" for bits in (0.25, 0.5, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0)),
    *(f"hadamard(256) >> budget({bits}, {_EVERY})" for bits in (2.0, 3.0, 4.0, 5.0)),
    *("budget(3.0)", "budget(4.0)", "budget(3.0, per=0)", "budget(4.0, per=0)"),
    *(
        f"topk({fraction}) >> {then}"
        for fraction, then in (
            (0.001, "fp8()"),
            (0.003, "fp8()"),
            (0.01, "fp8()"),
            (0.03, "fp8()"),
            (0.1, "fp8()"),
        )
    ),
    *(
        "topk(0.01)",
        "topk(0.03) >> nf4()",
        "topk(0.1) >> nf4()",
        "topk(64, per=4096) >> uniform(2, grid='rise')",
    ),
    *(f"svd({rank})" for rank in (1, 4, 16, 64)),
    *("svd(16) >> fp8()", "lowrank(4)", "lowrank(16)"),
)
"""The codecs that are tried by default; budgets that fill the requested bytes are added
(`filling`)."""

_FILLED = (
    *(
        ("budget({bits}, " + _EVERY + ")", 1),
        ("budget({bits}, " + _EVERY + ", per=0)", 1),
        ("budget({bits})", 200),
    ),
    ("hadamard(256) >> budget({bits}, " + _EVERY + ")", 1),
)
"""Budgets with a gap, and the fewest bits that each may have, in hundredths."""


@dataclass(frozen=True, slots=True)
class Choice:
    """One codec on one gradient. error: ||Q(x) - x|| / ||x||; widths: the mean width of each
    tensor, where the codec is a `budget`."""

    codec: str
    nbytes: int
    bits: float
    error: float
    drops: bool
    widths: dict[str, float] | None


def tried(codes: Sequence[str], tensors: Mapping[str, Tensor]) -> Iterator[Choice]:
    """Measure each codec on the tensors, laid side by side as in a bucket.

    Args:
        codes: as `thinwire.strategy.reading.spelled` reads them.
        tensors: by name.

    Raises:
        StrategyError: a code makes no codec.
        PayloadError: a codec's own payload does not decode.
    """
    x, spec = laid(tensors)
    # All are read before the first one takes its time.
    codecs: dict[str, Codec] = {code: spelled("what", code) for code in codes}
    for code, codec in codecs.items():
        outcome = round_trip(codec, x, spec, RankContext(rank=0, group=(0,), step=0, seed=SEED))
        # Widths are known only if the budget sees the gradient itself.
        within = next((part for part in inside(codec) if isinstance(part, budget)), None)
        widths = within.chosen(x, spec) if within is not None and _whole(codec) else None
        yield Choice(
            code,
            outcome.nbytes,
            8 * outcome.nbytes / spec.numel,
            outcome.error,
            codec.traits.drops,
            widths,
        )


def limit_in_bytes(bits: float | None, nbytes: int | None, values: int) -> int | None:
    """Return the bytes that a codec may have, from bits a value or bytes; `None` without a limit.

    Raises:
        ConfigError: both are asked for, or less than a byte.

    Example:
        >>> limit_in_bytes(3.0, None, 1001), limit_in_bytes(None, 500, 1001)
        (375, 500)
    """
    # One limit at most, and at least a byte.
    if bits is not None and nbytes is not None:
        raise ConfigError(
            "--bits and --bytes both set the size: bits a value, or bytes of all values; leave "
            "one out"
        )
    if bits is not None and not 0 < bits < math.inf:
        raise ConfigError(f"--bits {bits:g}: bits a value, more than 0")
    room = nbytes if bits is None else int(bits * values / 8)
    if room is not None and room < 1:
        raise ConfigError(
            f"{'--bytes' if bits is None else '--bits'}: {room} bytes for {values:,} values; "
            "expected at least 1 byte"
        )
    return room


def filling(room: int, spec: Spec) -> list[str]:
    """Return budgets that fill `room` bytes, to a hundredth of a bit a value.

    A budget whose range does not contain `room` is left out.
    """
    codes = []
    for code, least in _FILLED:
        below, above = least, 801  # in hundredths of a bit: `below` fits, `above` does not

        def nbytes(hundredths: int, code: str = code) -> int:
            return int(spelled("what", code.format(bits=hundredths / 100)).nbytes(spec))

        if nbytes(below) > room or nbytes(800) <= room:
            continue
        while above - below > 1:
            middle = (below + above) // 2
            below, above = (middle, above) if nbytes(middle) <= room else (below, middle)
        codes.append(code.format(bits=below / 100))
    return codes


def best_within(rows: Sequence[Choice], room: int) -> Choice:
    """Return the row of least error within `room` bytes.

    Raises:
        ConfigError: none fits.
    """
    fitting = [row for row in rows if row.nbytes <= room]
    if not fitting:
        least = min(rows, key=lambda row: row.nbytes)
        smallest = f"{least.codec}, has {least.nbytes:,} ({least.bits:.3f} bits a value)"
        raise ConfigError(f"no codec of the list fits {room:,} bytes; the smallest, {smallest}")
    return min(fitting, key=lambda row: (row.error, row.nbytes))


def _whole(codec: Codec) -> bool:
    """Return whether a budget, or one in a wrapper, sees the gradient itself; in a chain or under a
    role it sees another span."""
    while not isinstance(codec, budget):
        inner = getattr(codec, "inner", None)
        if not isinstance(inner, Codec):
            return False
        codec = inner
    return True
