"""What ranks tell one another with each launch: which parameters some rank reached, whose values are not finite.

The message is a byte on good steps and travels on the control lane while the buckets do, so nobody waits for it:
    bit 0   some value here is not finite
    bit 1   every parameter here has a gradient
    then, where the launch before had parameters without gradients on all ranks, a bit a parameter: it has one here
Ranks combine messages by a bitwise OR in ceil(log2 K) exchanges: in round r each sends what it has to the rank 2^r further on.
Where all ranks miss some parameter and the bits a parameter did not travel, they follow in a second message.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence

import torch
from torch import Tensor

from thinwire.core import Driver, Exchange, Flight, Handle, Outcome
from thinwire.engine import agree
from thinwire.engine.buckets import FlatBucket
from thinwire.engine.meter import Meter

_BAD, _COMPLETE = 1, 2


class Status:
    """The status of one launch, agreed by all ranks.

    Args:
        buckets: those that were launched.
        step: the step of the launch.
        first_bad: by bucket, the index of its first value that is not finite, or -1; a tensor where it is on a device.
        absent: by bucket, the parameters without a gradient here; `None` where no gradients are launched.
        bitmap: send the bits a parameter at once.
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
    ) -> None:
        self._driver, self._meter, self._buckets, self.step = driver, meter, list(buckets), step
        self._first_bad, self._absent = list(first_bad), absent
        self._device = buckets[0].device
        self._result: bytes | None = None
        self.incomplete = False
        """Every rank misses the gradient of some parameter."""
        self.bad = False
        """Some rank's values are not finite."""
        self.silent: dict[int, frozenset[int]] = {}
        """By bucket, the parameters whose gradient no rank has."""
        self._offenders: list[str] | None = None
        complete = absent is None or not any(absent)
        self._bitmap = bitmap and absent is not None
        bits = self._bits() if self._bitmap else b""
        own = torch.frombuffer(bytearray([_COMPLETE * complete]) + bits, dtype=torch.uint8).to(self._device)
        own[0] |= self._bad_here()
        self._handle = self._start(own, f"step {step}: status of the launch") if driver.world > 1 else None
        self._own = own

    @property
    def here(self) -> bool:
        """Whether values of this rank are not finite."""
        return bool(self._bad_here())

    def wait(self) -> Status:
        """Wait for all ranks' messages; all ranks call it at the same landing."""
        if self._result is None:
            self._result = self._bytes(self._handle)
            self.bad = bool(self._result[0] & _BAD)
            self.incomplete = not self._result[0] & _COMPLETE
            if self.incomplete:
                self._agree_on_silent()
        return self

    def offenders(self) -> list[str]:
        """Name the first parameter that is not finite, by rank; the first call is a round trip, which all ranks take part in."""
        if self._offenders is None:
            self._offenders = self._ask_for_offenders()
        return self._offenders

    def _ask_for_offenders(self) -> list[str]:
        mine = [bucket.name_at(int(at)) for bucket, at in zip(self._buckets, self._first_bad, strict=True) if int(at) >= 0]
        label = f"step {self.step}: which values are not finite"
        named = agree.share(self._driver, self._meter, json.dumps(mine[:1]).encode(), label, self._device)
        return [f"rank {rank}: {json.loads(each)[0]!r}" for rank, each in enumerate(named) if json.loads(each)]

    def warn_of_absent(self) -> None:
        """Warn where another rank reached parameters that this rank did not."""
        names = [
            bucket.names[i]
            for bucket, gone in zip(self._buckets, self._absent or [frozenset[int]()] * len(self._buckets), strict=True)
            for i in sorted(gone - self.silent.get(bucket.index, frozenset()))
        ]
        if names:
            shown = ", ".join(names[:3]) + (" …" if len(names) > 3 else "")
            warnings.warn(
                f"this rank's first backward pass did not reach {shown}, but another rank's did: "
                "they count as zeros here and take the mean",
                stacklevel=2,
            )

    def _agree_on_silent(self) -> None:
        assert self._absent is not None
        assert self._result is not None
        bits = self._result[1:]
        if not self._bitmap:
            own = torch.frombuffer(bytearray(self._bits()), dtype=torch.uint8).to(self._device)
            label = f"step {self.step}: parameters without gradients"
            bits = self._bytes(self._start(own, label)) if self._driver.world > 1 else self._bits()
        reached = [bool(byte >> k & 1) for byte in bits for k in range(8)]
        at = 0
        for bucket in self._buckets:
            own_bits = reached[at : at + len(bucket.params)]
            self.silent[bucket.index] = frozenset(i for i, here in enumerate(own_bits) if not here)
            at += len(bucket.params)

    def _bits(self) -> bytes:
        assert self._absent is not None
        here = [i not in gone for bucket, gone in zip(self._buckets, self._absent, strict=True) for i in range(len(bucket.params))]
        return sum(1 << i for i, each in enumerate(here) if each).to_bytes(-(-len(here) // 8), "little")

    def _bad_here(self) -> int | Tensor:
        on_device = [each for each in self._first_bad if isinstance(each, Tensor)]
        known = any(not isinstance(each, Tensor) and each >= 0 for each in self._first_bad)
        return torch.stack(on_device).ge(0).any() | known if on_device else int(known)

    def _start(self, own: Tensor, label: str) -> Handle:
        self._label = label
        return self._driver.start(any_of(own, self._driver.rank, self._driver.world), self._driver.lanes, label)

    def _bytes(self, handle: Handle | None) -> bytes:
        if handle is None:
            return bytes(self._own.cpu().numpy())
        total = handle.wait().total
        self._meter.count(self._label, handle.sent_bytes)
        return bytes(total.cpu().numpy())


def any_of(own: Tensor, rank: int, world: int) -> Flight:
    """Combine every rank's bytes by a bitwise OR: ceil(log2 K) exchanges, whatever the number K of ranks.

    After round r each rank holds the OR of 2^(r+1) ranks, its own and those before it; that some count twice changes nothing.
    """
    distance = 1
    while distance < world:
        source = (rank - distance) % world
        answer = yield Exchange((((rank + distance) % world, own),), ((source, own.numel()),))
        own = own | answer[source].to(own.device)
        distance *= 2
    return Outcome(own)
