"""Exchange with each launch which parameters some rank reached, and whose values are not finite.

The message is a byte or two on good steps. It travels on the control lane while the buckets do, so
no rank waits for it:

    bit 0      every parameter here has a gradient
    bit 1 …    one a bucket: some value of it here is not finite
    a bit      the wire is as fast as planned, where lanes or routes were chosen by its speed
    then       one a parameter, that it has a gradient here, where the launch before had parameters
               without gradients on all ranks

Ranks combine messages by a bitwise OR in ceil(log2 K) exchanges: in round r each sends its own to
the rank 2^r further on. What the result calls for follows in the same flight, so that waiting for
it never sends anything: the bits of the parameters where all ranks miss some, and the first
offender where a value is not finite.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from thinwire.core import Driver, Flight
from thinwire.core.collective import combine
from thinwire.engine.agree import context_of
from thinwire.engine.buckets import FlatBucket
from thinwire.engine.observe.meter import Meter

_NOBODY = 2**63 - 1
_INDEX_BITS = 40  # of an offender, below its rank


class Status:
    """A launch's status, agreed by all ranks.

    Args:
        buckets: those that were launched.
        step: the step of the launch.
        first_bad: by bucket, the index of its first value that is not finite, or -1; a tensor where
            it is on a device.
        absent: by bucket, the parameters without a gradient here; `None` where no gradients are
            launched.
        bitmap: send the bits a parameter at once.
        as_planned: the wire is as fast as planned; `None` where nothing was chosen by it.
    """

    def __init__(
        self,
        driver: Driver,
        meter: Meter,
        buckets: Sequence[FlatBucket],
        step: int,
        first_bad: Sequence[int | Tensor],
        absent: Sequence[frozenset[int]] | None,
        bitmap: bool,
        as_planned: bool | None = None,
    ) -> None:
        self._driver, self._meter, self.step = driver, meter, step
        self._buckets, self._first_bad, self._absent = list(buckets), list(first_bad), absent
        self._waited, self._as_planned = False, as_planned
        self.as_planned = True
        """Some rank finds the wire as fast as planned."""
        self.incomplete = False
        """Every rank misses the gradient of some parameter."""
        self.bad: frozenset[int] = frozenset()
        """Indices of buckets of which some rank's values are not finite."""
        self.offender = ""
        """The lowest rank with such a value, and the parameter."""
        self.silent: dict[int, frozenset[int]] = {}
        """By bucket, the parameters whose gradient no rank has."""
        self._label = f"step {step}: status of the launch"
        # It travels at once, on the control lane; the fields above are set as it lands.
        flight = self._flight(bitmap and absent is not None)
        self._handle = driver.start(flight, driver.lanes, self._label) if driver.world > 1 else None
        if self._handle is None:
            # Alone, the flight has no hops, but it still sets the fields.
            for _ in flight:
                raise AssertionError("a world of one has no other rank to exchange with")

    @property
    def whole(self) -> int:
        """Return how many buckets were launched."""
        return len(self._buckets)

    def wait(self) -> Status:
        """Wait for all ranks' messages. It sends nothing, so ranks may call it at different
        times."""
        if self._handle is not None and not self._waited:
            self._handle.wait()
            self._meter.count(self._label, self._handle.sent_bytes)
        self._waited = True
        return self

    def warn_of_absent(self) -> None:
        """Warn where another rank reached parameters that this rank did not."""
        names = [
            bucket.names[i]
            for bucket, gone in zip(
                self._buckets, self._absent or [frozenset[int]()] * len(self._buckets), strict=True
            )
            for i in sorted(gone - self.silent.get(bucket.index, frozenset()))
        ]
        if names:
            shown = ", ".join(names[:3]) + (" …" if len(names) > 3 else "")
            warnings.warn(
                f"this rank's first backward pass did not reach {shown}, but another rank's did: "
                "they count as zeros here and take the mean",
                stacklevel=2,
            )

    def _flight(self, bitmap: bool) -> Flight[None]:
        ctx, device = context_of(self._driver), self._buckets[0].device
        # 1. the flags, and at times the bits a parameter. `int` waits for a device: here the lane's
        #    thread does, not the loop's.
        first_bad = [int(each) for each in self._first_bad]
        flags = _packed(
            [
                self._absent is None or not any(self._absent),
                *(at >= 0 for at in first_bad),
                *([] if self._as_planned is None else [self._as_planned]),
            ]
        )
        own = flags + (self._reached() if bitmap else b"")
        folded = yield from combine(_tensor(own, device), ctx, torch.bitwise_or)
        message = bytes(folded.cpu().numpy())
        bits = _unpacked(message)
        self.incomplete = not bits[0]
        self.as_planned = self._as_planned is None or bits[1 + len(first_bad)]
        self.bad = frozenset(
            bucket.index for bucket, bad in zip(self._buckets, bits[1:], strict=False) if bad
        )
        # 2. the bits a parameter, where they are wanted and did not travel
        if self.incomplete:
            reached = message[len(flags) :]
            if not bitmap:
                folded = yield from combine(_tensor(self._reached(), device), ctx, torch.bitwise_or)
                reached = bytes(folded.cpu().numpy())
            self._take(_unpacked(reached))
        # 3. the first offender of the lowest rank that has one
        if self.bad:
            here = any(at >= 0 for at in first_bad)
            mine = torch.tensor(
                [(ctx.rank << _INDEX_BITS) + self._first_bad_at(first_bad) if here else _NOBODY]
            )
            lowest = yield from combine(mine.view(torch.uint8).to(device), ctx, _lower)
            self.offender = self._named(int(lowest.cpu().view(torch.int64)))

    def _first_bad_at(self, first_bad: Sequence[int]) -> int:
        """Return the index of the first bad value here, counted over all buckets that were
        launched."""
        before = 0
        for bucket, at in zip(self._buckets, first_bad, strict=True):
            if at >= 0:
                return before + at
            before += bucket.spec.numel
        raise AssertionError("no value here is bad")

    def _named(self, offender: int) -> str:
        offset = offender & (1 << _INDEX_BITS) - 1
        # The offset counts through all buckets of the launch, in order.
        for bucket in self._buckets:
            if offset < bucket.spec.numel:
                return f"rank {offender >> _INDEX_BITS}: {bucket.name_at(offset)!r}"
            offset -= bucket.spec.numel
        raise AssertionError("the offender lies in no bucket")

    def _reached(self) -> bytes:
        assert self._absent is not None
        return _packed(
            i not in gone
            for bucket, gone in zip(self._buckets, self._absent, strict=True)
            for i in range(len(bucket.params))
        )

    def _take(self, reached: Sequence[bool]) -> None:
        at = 0
        for bucket in self._buckets:
            own = reached[at : at + len(bucket.params)]
            self.silent[bucket.index] = frozenset(i for i, here in enumerate(own) if not here)
            at += len(bucket.params)


def _lower(a: Tensor, b: Tensor) -> Tensor:
    """Return the lesser of two int64 numbers, given as bytes."""
    return torch.minimum(a.clone().view(torch.int64), b.clone().view(torch.int64)).view(torch.uint8)


def _packed(bits: Iterable[bool]) -> bytes:
    values = list(bits)
    return sum(1 << i for i, bit in enumerate(values) if bit).to_bytes(
        -(-len(values) // 8), "little"
    )


def _unpacked(packed: bytes) -> list[bool]:
    return [bool(byte >> k & 1) for byte in packed for k in range(8)]


def _tensor(content: bytes, device: torch.device) -> Tensor:
    return torch.frombuffer(bytearray(content), dtype=torch.uint8).to(device)
