"""Make awkward spans and values, and report a broken law."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

from thinwire.core import Part, RankContext, Ranks, Role, Spec, State
from thinwire.core.component import Component
from thinwire.kernels import reference

RANKS: Ranks = (1, 2, 5)
"""Three ranks of some larger world, as a route between nodes would ctx them."""

INPUTS = (
    "normal",
    "zeros",
    "one hot",
    "equal",
    "subnormal",
    "huge",
    "wide range",
    "not contiguous",
    "wide dtype",
)
"""The kinds of values that `inputs` makes."""

_SHAPES: tuple[tuple[Role, tuple[int, ...]], ...] = (
    ("vector", (7,)),
    ("matrix", (24, 20)),
    ("vector", ()),
    ("embedding", (9, 8)),
    ("matrix", (2, 3, 4)),
    ("matrix", (0, 4)),
    ("vector", (33,)),
    ("matrix", (1, 5)),
)


def require(holds: bool, component: Component, law: str, case: str, why: str = "") -> None:
    """Raise AssertionError, naming the law, the component and the input, unless the law holds.

    Example:
        >>> from thinwire.when import every
        >>> require(1 + 1 == 3, every(2), "one and one is three", "small numbers", "it is 2")
        Traceback (most recent call last):
        AssertionError: every(n=2) breaks the law 'one and one is three' on small numbers: it is 2
    """
    if not holds:
        raise AssertionError(
            f"{component!r} breaks the law {law!r} on {case}{': ' if why else ''}{why}"
        )


def specs() -> dict[str, Spec]:
    """Make spans that have broken codecs: parts of all roles, cut parts, a scalar, one value, none,
    other dtypes.

    Example:
        >>> {name: spec.numel for name, spec in specs().items() if spec.numel < 4}
        {'one value': 1, 'three values': 3, 'an empty span': 0, 'no parts, no values': 0}
    """
    parts, at = [], 0
    # Parts of all roles, one after the other.
    for i, (role, shape) in enumerate(_SHAPES):
        parts.append(Part(f"p{i}", shape, at, role))
        at = parts[-1].end
    many = Spec(tuple(parts), 0, at, torch.float32)
    return {
        "many parts": many,
        "cut parts": many.span(441, 555),
        "no parts": Spec((), 0, 100, torch.float32),
        "one value": Spec((Part("scalar", (), 0, "vector"),), 0, 1, torch.float32),
        "three values": Spec((Part("short", (3,), 0, "vector"),), 0, 3, torch.float32),
        "an empty span": many.span(480, 480),
        "no parts, no values": Spec((), 0, 0, torch.float32),
        **{
            str(dtype).removeprefix("torch."): Spec(many.parts, 0, at, dtype)
            for dtype in (torch.bfloat16, torch.float16, torch.float64)
        },
    }


def inputs(spec: Spec, rank: int) -> dict[str, Tensor]:
    """Make one rank's values for a span, by what is awkward about them.

    They are (spec.numel,) of spec.dtype, or of spec.work where the name says so.

    Example:
        >>> list(inputs(specs()["three values"], rank=0))
        ['normal', 'zeros', 'one hot', 'equal', 'subnormal', 'huge', 'wide range',
         'not contiguous', 'wide dtype']
    """
    # Keyed by name, rank and span, so that a case is the same in every test.
    n, info = spec.numel, torch.finfo(spec.dtype)

    def normal(what: str, count: int = n) -> Tensor:
        digest = hashlib.blake2b(f"{what}/{rank}/{spec.key}".encode(), digest_size=4).digest()
        return torch.randn(
            count,
            generator=torch.Generator().manual_seed(int.from_bytes(digest, "little")),
            dtype=torch.float64,
        )

    hot = torch.zeros(n, dtype=torch.float64)
    hot[n // 2 : n // 2 + 1] = 1.0 + rank
    by_name = {
        "normal": normal("normal"),
        "zeros": torch.zeros(n),
        "one hot": hot,
        "equal": torch.full((n,), 0.3 + rank),
        "subnormal": normal("subnormal").clamp(-1, 1) * info.smallest_normal * 0.9,
        "huge": normal("huge") * info.max**0.75,
        "wide range": normal("signs") * torch.exp2(normal("scales").clamp(-3, 3) * 4),
    }
    typed = {name: x.to(spec.dtype) for name, x in by_name.items()}
    typed["not contiguous"] = normal("not contiguous", 2 * n).to(spec.dtype)[::2]
    typed["wide dtype"] = normal("wide dtype").to(spec.work)
    return typed


def inputs_by_rank(spec: Spec) -> dict[str, dict[int, Tensor]]:
    """Return every rank's `inputs` by their name."""
    values = {rank: inputs(spec, rank) for rank in RANKS}
    return {name: {rank: values[rank][name] for rank in RANKS} for name in values[RANKS[0]]}


def contexts(step: int = 0, seed: int = 0, group: Ranks = RANKS) -> dict[int, RankContext]:
    """Return a ctx for each rank of a group."""
    return {rank: RankContext(rank, group, step, seed, "check") for rank in group}


def same(a: Tensor, b: Tensor) -> bool:
    """Return whether dtype, shape and bits are the same, NaNs included."""
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(_bits(a), _bits(b))


def snapshot(state: State) -> list[tuple[str, Tensor, Tensor]]:
    """Return each leaf's path, the very tensor it holds now, and a copy of it."""
    return [(path, leaf.value, leaf.value.clone()) for path, leaf in state.walk()]


def _bits(x: Tensor) -> Tensor:
    return reference.as_bytes(x.detach().reshape(-1))
