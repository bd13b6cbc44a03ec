"""Read and write the entries of the store. Anybody may have written them, so sizes, numbers and
shapes are bounded first."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from thinwire.engine.agree import raw
from thinwire.errors import PayloadError

MOST_ROUNDS = 1 << 40
_HEAD = 8  # bytes that hold the length of the JSON
_NAME = re.compile(r"(0|[1-9][0-9]{0,6})\.([0-9a-f]{12})\.([1-9][0-9]{0,11})")
_DTYPES = {
    str(value).removeprefix("torch."): value
    for value in vars(torch).values()
    if isinstance(value, torch.dtype)
}


@dataclass(frozen=True)
class Bounds:
    """A bound for each value that an entry of the store may have.

    ranks: every rank is below it; weight: of a contribution; contribution_bytes, snapshot_bytes: of
    a value.
    """

    ranks: int
    weight: float
    contribution_bytes: int
    snapshot_bytes: int

    @property
    def slots(self) -> int:
        """Return how many contributions a round may have: several lives of every rank, each with
        late contributions."""
        return 64 + 16 * self.ranks


class Contribution(NamedTuple):
    """A contribution's entry: its ID, its bytes, and the round whose anchor it began with."""

    name: str
    nbytes: int
    began: int

    @property
    def rank(self) -> int:
        """Return the rank that made it."""
        return int(self.name.split(".", maxsplit=1)[0])


def read_json(text: str | bytes, most: int = 1 << 20) -> Any:
    """Return the value of a JSON text of at most `most` bytes.

    Raises:
        PayloadError: it is longer, or no JSON.

    Example:
        >>> read_json("[1, 2]")
        [1, 2]
        >>> read_json("[" * 100_000)
        Traceback (most recent call last):
        ...
        thinwire.errors.PayloadError: no JSON: '[[[[...
    """
    if len(text) > most:
        raise PayloadError(f"{len(text)} bytes of JSON where {most} is the most")
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise PayloadError(f"no JSON: {text[:60]!r} …") from error


def is_count(value: Any, most: int, least: int = 0) -> bool:
    """Return whether a value is an integer from `least` to `most`."""
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def is_name(text: Any, ranks: int) -> bool:
    """Return whether a text is the ID of a contribution of one of `ranks` ranks.

    Example:
        >>> is_name("2.0123456789ab.1", 3), is_name("77.0123456789ab.1", 3), is_name(None, 3)
        (True, False, False)
    """
    match = _NAME.fullmatch(text) if isinstance(text, str) else None
    return match is not None and int(match[1]) < ranks


def read_ranks(value: Any, bounds: Bounds) -> tuple[int, ...]:
    """Return the ranks that a JSON value lists.

    Raises:
        PayloadError: it is no list of ranks.
    """
    if not isinstance(value, list) or not all(is_count(rank, bounds.ranks - 1) for rank in value):
        raise PayloadError(f"{str(value)[:60]!r} is no list of ranks")
    return tuple(value)


def read_contribution(value: Any, round_: int, bounds: Bounds) -> Contribution | None:
    """Return the entry that a JSON value holds, or `None` if no rank can have written it."""
    if not (
        isinstance(value, list)
        and len(value) == len(Contribution._fields)
        and is_name(value[0], bounds.ranks)
    ):
        return None
    name, nbytes, began = value
    if not (is_count(nbytes, bounds.contribution_bytes, least=1) and is_count(began, round_)):
        return None
    return Contribution(name, nbytes, began)


def read_weight(head: dict[str, Any], contribution: Contribution, bounds: Bounds) -> float:
    """Return the weight of a contribution, whose head must agree with its offer.

    Raises:
        PayloadError: it does not, or the weight is out of bounds.
    """
    if head.get("rank") != contribution.rank or head.get("began") != contribution.began:
        raise PayloadError(
            f"it was entered as rank {contribution.rank}'s of round {contribution.began}, but its "
            "head has "
            f"{head.get('rank')!r}, {head.get('began')!r}"
        )
    weight = head.get("weight")
    if (
        isinstance(weight, bool)
        or not isinstance(weight, int | float)
        or not 0 <= weight <= bounds.weight
        or not math.isfinite(weight)
    ):
        raise PayloadError(f"weight {weight!r} is not from 0 to {bounds.weight:g}")
    return float(weight)


def pack(facts: dict[str, Any], tensors: Sequence[Tensor]) -> bytes:
    """Return JSON facts and tensors as bytes.

    Example:
        >>> facts, (x,) = unpack(pack({"round": 3}, [torch.ones(2)]))
        >>> facts, x
        ({'round': 3}, tensor([1., 1.]))
    """
    facts = {
        **facts,
        "tensors": [
            [str(tensor.dtype).removeprefix("torch."), list(tensor.shape)] for tensor in tensors
        ],
    }
    head = json.dumps(facts).encode()
    return len(head).to_bytes(_HEAD, "little") + head + b"".join(map(raw, tensors))


def unpack(blob: bytes) -> tuple[dict[str, Any], list[Tensor]]:
    """Return the facts and tensors that `pack` packed.

    Raises:
        PayloadError: these bytes are not of its making.
    """
    # 1. The head: JSON behind its length. The bytes may be anyone's, so all is checked first.
    length = int.from_bytes(blob[:_HEAD], "little")
    at = _HEAD + length
    if len(blob) < at:
        raise PayloadError(f"a head of {length} bytes in {len(blob)}")
    head = read_json(blob[_HEAD:at], most=len(blob))
    entries = head.pop("tensors", None) if isinstance(head, dict) else None
    if not isinstance(entries, list):
        raise PayloadError("its head names no tensors")
    # 2. The tensors in the head's order, each within the bytes that are there.
    tensors = []
    for entry in entries:
        dtype, shape = _dtype_and_shape(entry)
        nbytes = math.prod(shape) * dtype.itemsize
        if nbytes > len(blob) - at:
            raise PayloadError(f"a tensor of {nbytes} bytes where {len(blob) - at} are left")
        # A copy of its own is aligned for any type; a bool of another byte than 0 and 1 would be
        # undefined.
        bits = (
            torch.frombuffer(bytearray(blob[at : at + nbytes]), dtype=torch.uint8)
            if nbytes
            else torch.empty(0, dtype=torch.uint8)
        )
        tensors.append((bits.ne(0) if dtype == torch.bool else bits.view(dtype)).view(shape))
        at += nbytes
    if at != len(blob):
        raise PayloadError(f"{len(blob) - at} bytes more than its head names")
    return head, tensors


def _dtype_and_shape(entry: Any) -> tuple[torch.dtype, list[int]]:
    if (
        isinstance(entry, list)
        and len(entry) == 2
        and isinstance(entry[0], str)
        and entry[0] in _DTYPES
        and isinstance(entry[1], list)
    ):
        dtype, shape = _DTYPES[entry[0]], entry[1]
        if len(shape) <= 64 and all(is_count(size, MOST_ROUNDS) for size in shape):
            return dtype, shape
    raise PayloadError(f"{str(entry)[:60]!r} is no type and shape of a tensor")
