"""Exchange facts between ranks outside the schedule: at attach, in a check, before a launch.

All of it travels as flights, through the same driver and meter as everything else, on the control
lane: never behind a bucket's way over the wire.
"""

from __future__ import annotations

import hashlib
import json
import math
import struct
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from thinwire.core import Driver, Flight, Handle, Link, RankContext, Route, collective, travel
from thinwire.core.alike import all_gather_alike
from thinwire.core.broadcast import broadcast as broadcast_flight
from thinwire.core.phase import phase
from thinwire.engine.observe.meter import Meter
from thinwire.engine.shards import local_of
from thinwire.errors import AttachError, DisagreementError
from thinwire.net import LOCAL_NETWORK
from thinwire.strategy.fingerprint import fingerprint

DIRECTLY = 32
"""The most ranks that send what they compare to each other at once. In larger worlds it goes by a
tree, in which equal bytes travel once: more steps, but bytes that grow as the world, not as its
square."""


class Gathering:
    """An all-gather of bytes that is on its way; `result` waits for the other ranks'."""

    def __init__(
        self, driver: Driver, meter: Meter, payload: bytes, label: str, device: torch.device
    ) -> None:
        self._meter, self._label = meter, label
        ctx = context_of(driver)
        directly = driver.world <= DIRECTLY
        flight = (
            _directly(payload, ctx, device) if directly else all_gather_alike(payload, ctx, device)
        )
        self._handle: Handle[list[bytes]] = driver.start(flight, driver.lanes, label)

    def result(self) -> list[bytes]:
        """Wait for every rank's bytes and return them, by rank."""
        with phase("agree", self._label):
            gathered = self._handle.wait()
        self._meter.count(self._label, self._handle.sent_bytes)
        return gathered


def _directly(payload: bytes, ctx: RankContext, device: torch.device) -> Flight[list[bytes]]:
    own = torch.empty(0, dtype=torch.uint8, device=device)
    if payload:
        own = torch.frombuffer(bytearray(payload), dtype=torch.uint8).to(device)
    gathered = yield from collective.all_gather(own, ctx)
    return [each.cpu().numpy().tobytes() for each in gathered]


def counted(driver: Driver) -> str:
    """Return how a message counts ranks, where they are a part of all; else ""."""
    ranks = driver.global_ranks
    return f" (rank r is the r-th of {list(ranks)}, counted from 0)" if ranks else ""


def context_of(driver: Driver) -> RankContext:
    """Return the context of a collective over all ranks of a driver, which draws nothing."""
    return RankContext(driver.rank, tuple(range(driver.world)), 0, 0)


def all_gather(
    driver: Driver, meter: Meter, payload: bytes, label: str, device: torch.device
) -> list[bytes]:
    """Return every rank's bytes, by rank. All ranks call it alike."""
    return Gathering(driver, meter, payload, label, device).result()


def listed_problems(by_rank: Sequence[str], begin: str) -> str:
    """Return what ranks have found, a line for each that has; "" where none has.

    Args:
        begin: what the text starts with.
    """
    listed = [f"rank {rank}: {text}" for rank, text in enumerate(by_rank) if text]
    return f"{begin}:\n" + "\n".join(listed) if listed else ""


def refuse_problems(by_rank: Sequence[str], begin: str) -> None:
    """Raise on every rank what any rank has found; see `listed_problems`.

    Raises:
        AttachError: some rank has a problem.
    """
    if listed := listed_problems(by_rank, begin):
        raise AttachError(listed)


def slowest(
    driver: Driver, meter: Meter, seconds: float, label: str, device: torch.device
) -> float:
    """Return the most seconds that any rank gives. All ranks call it alike."""
    return max(
        float(struct.unpack("<d", packed)[0])
        for packed in all_gather(driver, meter, struct.pack("<d", seconds), label, device)
    )


def fractions(weights: Sequence[float], route: Route | None = None) -> list[float]:
    """Return each rank's weight over the sum of all.

    Raises:
        AttachError: a weight is negative or not finite, or all are 0, or they differ on a route
            where a rank receives from some others only; the ranks are named.

    Example:
        >>> fractions([1, 3])
        [0.25, 0.75]
    """
    # 1. Refuse what is no weight, or leaves no sum to divide by.
    bad = {
        rank: weight
        for rank, weight in enumerate(weights)
        if not (math.isfinite(weight) and weight >= 0)
    }
    if bad or not sum(weights):
        raise AttachError(
            "weights must be finite, at least 0 and not all 0; by rank: "
            f"{bad or dict(enumerate(weights))}"
        )
    # 2. Refuse weights that differ where a rank does not receive from all.
    reason = travel.weight_refusal(route, weights) if route is not None else None
    if reason is not None:
        raise AttachError(reason)
    return [weight / sum(weights) for weight in weights]


def broadcast(
    driver: Driver, meter: Meter, tensors: Sequence[Tensor], label: str, link: Link | None = None
) -> None:
    """Put rank 0's values into every rank's tensors, by the way that is faster on the link.

    Args:
        link: decides the way; `None` is that of a local network, by the driver's transport.
    """
    if driver.world == 1 or not tensors:
        return
    # 1. One flat run of bytes, so that tensors of any type travel in one flight.
    flat = torch.cat(
        [local_of(tensor).contiguous().view(-1).view(torch.uint8) for tensor in tensors]
    )
    link = link or LOCAL_NETWORK.between(0, 1, driver.transport)
    # 2. Send it.
    flight = broadcast_flight(flat, context_of(driver), link)
    handle = driver.start(flight, driver.lanes, label)
    with phase("agree", label):
        handle.wait()
    meter.count(label, handle.sent_bytes)
    # 3. Copy it back, on all ranks but rank 0.
    if driver.rank:
        at = 0
        for tensor in tensors:
            local = local_of(tensor)
            nbytes = local.numel() * local.dtype.itemsize
            own = flat[at : at + nbytes].clone()  # a copy of its own is aligned for any dtype
            local.copy_(own.view(local.dtype).view(local.shape))
            at += nbytes


def identified(value: Any) -> dict[str, str]:
    """Return a strategy or component as a fact: compared by its fingerprint, shown as its code."""
    return {"fingerprint": fingerprint(value), "code": repr(value)}


def compared_by(fact: Any) -> Any:
    """Return what two ranks' values of a fact are compared by."""
    return fact["fingerprint"] if _is_identity(fact) else fact


def shown(fact: Any) -> Any:
    """Return what a message says of a fact."""
    return fact["code"] if _is_identity(fact) else fact


def _is_identity(fact: Any) -> bool:
    return isinstance(fact, dict) and set(fact) == {"fingerprint", "code"}


def must_agree(
    driver: Driver,
    meter: Meter,
    facts: dict[str, Any],
    device: torch.device,
    call: str = "attach",
) -> None:
    """Raise on every rank unless all ranks hold the same facts.

    Args:
        call: what ranks do together, which labels the exchange.

    Raises:
        DisagreementError: it names the first fact that differs and who holds what.
    """
    # 1. Compare digests, 32 bytes from each rank: equal in nearly every case.
    text = json.dumps(facts).encode()
    compared = json.dumps({name: compared_by(value) for name, value in facts.items()}).encode()
    digests = all_gather(
        driver, meter, hashlib.sha256(compared).digest(), f"{call}: comparing digests", device
    )
    if len(set(digests)) == 1:
        return
    # 2. Exchange the facts themselves, on all ranks: all have seen the digests differ.
    held = [
        json.loads(other)
        for other in all_gather(driver, meter, text, f"{call}: comparing facts", device)
    ]
    # 3. Name the first that differs, in the order of `facts`: later ones may follow from it.
    for name in facts:
        values = [other.get(name) for other in held]
        if any(compared_by(value) != compared_by(values[0]) for value in values):
            codes = [shown(value) for value in values]
            raise DisagreementError(
                f"ranks cannot train together: {_difference(name, codes)}{counted(driver)}. Give "
                "every rank the same"
            )
    raise DisagreementError(
        "ranks cannot train together: they run different versions of thinwire. Give every rank "
        "the same"
    )


def _difference(name: str, values: list[Any]) -> str:
    """Describe the first difference in a fact, with the ranks that hold each value.

    Of a list it is the first item that differs; a shorter list counts as filled up with `None`.
    """
    # 1. A list: go to its first item that differs.
    if isinstance(values[0], list):
        length = max(len(value) for value in values)
        rows = [[value[i] if i < len(value) else None for value in values] for i in range(length)]
        first = next(i for i, row in enumerate(rows) if any(item != row[0] for item in row))
        name, values = f"{name}[{first}]", rows[first]
    # 2. Group the ranks by what they hold.
    sides: dict[str, list[int]] = {}
    for rank, value in enumerate(values):
        sides.setdefault(json.dumps(value), []).append(rank)
    sides_text = "; ".join(
        f"rank{'s' if len(ranks) > 1 else ''} {', '.join(map(str, ranks))}: {value}"
        for value, ranks in sides.items()
    )
    return f"{name} differs ({sides_text})"


def compare(
    driver: Driver,
    meter: Meter,
    named: Sequence[tuple[str, Tensor]],
    device: torch.device,
    problems: Sequence[str] = (),
) -> None:
    """Raise on every rank unless all ranks hold the same bits, and none has problems.

    Raises:
        AttachError: a rank has a problem; the error lists it.
        DisagreementError: it names the first tensor that differs, and the ranks that differ from
            rank 0.
    """
    if driver.world == 1:  # there is nothing to compare with
        refuse_problems(["; ".join(problems)], "check()")
        return
    # 1. Exchange 16 bytes for each tensor, then the text of this rank's problems, if any.
    hashes = [hash_of(tensor) for _, tensor in named]
    payload = b"".join(hashes) + "; ".join(problems).encode()
    held = all_gather(driver, meter, payload, "check: comparing hashes", device)
    # 2. What is longer than the hashes is problems: raise every rank's on all ranks.
    if troubled := {
        rank: other[16 * len(named) :].decode()
        for rank, other in enumerate(held)
        if len(other) > 16 * len(named)
    }:
        raise AttachError(
            "check():\n" + "\n".join(f"rank {rank}: {text}" for rank, text in troubled.items())
        )
    # 3. Name the first tensor whose hash is not rank 0's.
    for i, (name, _) in enumerate(named):
        differing = [
            rank
            for rank, other in enumerate(held)
            if other[16 * i : 16 * i + 16] != held[0][16 * i : 16 * i + 16]
        ]
        if differing:
            raise DisagreementError(
                f"{name!r} differs: ranks {differing} do not hold rank 0's bits (the first of "
                f"{len(named)} that differs){counted(driver)}"
            )


def hash_of(tensor: Tensor) -> bytes:
    """Return a hash of a tensor's bits, 16 bytes long."""
    return hashlib.blake2b(raw(tensor), digest_size=16).digest()


def raw(tensor: Tensor) -> memoryview:
    """Return a tensor's bits, in its own memory where it lies in one piece on the CPU."""
    return local_of(tensor).cpu().contiguous().view(-1).view(torch.uint8).numpy().data
