"""Compare between ranks what they must hold equal: once where they begin, then every n steps.

    begin      at the first launch: the weights that each rank began with, so that a rank that has
               loaded others is found
    measure    over the next 8 steps: the time of a step, of the checksums here, and of exchanging
               them
    agree      on n, so that comparing costs less than 0.5 % of the steps' time on the slowest rank;
               all ranks have the same n
    compare    checksums (checksums.py), 16 bytes from each rank to each: after a backward pass on
               gradients, at a landing on local steps

It finds ranks that are unequal. Where all of them hold the same wrong values, it finds nothing.
"""

from __future__ import annotations

import hashlib
import json
import math
import statistics
import struct
import time
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from thinwire.engine.clock import Clock
from thinwire.engine.guards import Watch
from thinwire.engine.layout import plain_name
from thinwire.engine.observe.checksums import checksums
from thinwire.engine.session import Session
from thinwire.errors import DisagreementError, NotLandedError

MOST = 0.005
"""The fraction of the time of training that comparing may take."""
MEASURED = 8  # steps
Every = int | Literal["auto"] | None


class Checks:
    """Compares the weights of ranks, for one syncer.

    Args:
        session: whose weights.
        clock: where its schedule stands.
        watch: knows which weights this rank began with.
        every: steps from one comparison to the next; "auto" measures and agrees on them, `None`
            compares where ranks begin only.
    """

    def __init__(self, session: Session, clock: Clock, watch: Watch, every: Every) -> None:
        self._session, self._clock, self._watch = session, clock, watch
        self.every: int | None = every if isinstance(every, int) else None
        """Steps from one comparison to the next; `None`: not known yet, or never."""
        # Ranks of a quorum never wait for all, so there is no moment to compare them at.
        self._together = session.driver.world > 1 and not session.by_quorum
        self._auto = every == "auto" and self._together and session.strategy.compares
        self._gather_s = 0.0
        self._report()
        self.restart()

    def restart(self) -> None:
        """Start again from here: after attach, or from a checkpoint."""
        self._begun = not self._together
        self._fresh = self._clock.step == 0
        self._last = self._clock.step
        self._last_timed: tuple[int, float] | None = None
        self._seconds: list[float] = []

    def follow(self, earlier: Checks) -> None:
        """Go on after a switch of strategy: what ranks began with has been compared, or not."""
        self._begun = earlier._begun

    # -- when to compare

    def passed(self, launched: bool) -> None:
        """Compare if it is time, at the end of a backward pass: every rank holds the weights of the
        step before."""
        if launched and not self._begun:
            self._begin(self._params(), checksums(param for _, param in self._params()))
        self._compare_on_time()

    def launching(self) -> None:
        """Compare what each rank began with, at the first launch of local steps."""
        if self._begun:
            return
        session = self._session
        # 1. A fresh run, or a checkpoint of a full landing without anchors: compare the weights.
        anchors = [session.strategy.on.common(bucket, bucket.state) for bucket in session.buckets]
        if self._fresh or (
            session.strategy.compares and anchors[0] is None and self._watch.began_equal
        ):
            self._begin(self._params(), self._watch.began)
        # 2. From a checkpoint with anchors: ranks' own weights differ rightly, their anchors do
        #    not.
        elif anchors[0] is not None:
            named = self._commons()
            self._begin(named, checksums(tensor for _, tensor in named))
        else:  # 3. Saved when each rank had its own weights: there is nothing to compare.
            self._begun = True

    def landed(self) -> None:
        """Compare if it is time, after a landing of local steps."""
        strategy, first = self._session.strategy, self._session.buckets[0]
        anchored = strategy.on.common(first, first.state) is not None
        if strategy.compares and (anchored or not self._clock.steps_since_sync):
            self._compare_on_time()

    # -- comparing

    def _begin(self, named: Sequence[tuple[str, Tensor]], sums: list[int]) -> None:
        self._begun = True
        frozen = self._session.frozen
        begun = time.perf_counter()
        self._agree(
            [name for name, _ in (*named, *frozen)],
            sums + checksums(tensor for _, tensor in frozen),
            _BEGAN,
        )
        self._gather_s = time.perf_counter() - begun

    def _compare_on_time(self) -> None:
        step = self._clock.step
        if self._auto and self.every is None:
            self._measure()
        elif self._together and self.every is not None and step - self._last >= self.every:
            self._last = step
            named = self._commons()
            self._agree(
                [name for name, _ in named], checksums(tensor for _, tensor in named), _DIFFERS
            )

    def _measure(self) -> None:
        """Time steps; after enough of them agree on n."""
        # 1. the seconds of a step
        step, now = self._clock.step, time.perf_counter()
        if self._last_timed is None:
            self._last_timed, self._since = (step, now), step
            return
        # Local steps come here at landings only: divide by the steps in between.
        before, then = self._last_timed
        self._last_timed = (step, now)
        self._seconds.append((now - then) / (step - before))
        if step - self._since < MEASURED:
            return
        # 2. the seconds of a comparison, which is one at the same time
        named = self._commons()
        begun = time.perf_counter()
        sums = checksums(tensor for _, tensor in named)
        # Seconds of hashing, of the first exchange, and of a step; and what computes them.
        mine = [
            time.perf_counter() - begun,
            self._gather_s,
            statistics.median(self._seconds),
            _machine(named[0][1].device),
        ]
        figures = [
            json.loads(other)
            for other in self._agree(
                [name for name, _ in named], sums, _DIFFERS, json.dumps(mine).encode()
            )
        ]
        self._last = step
        # 3. the same n on every rank, if results of their machines may be compared at all
        replica, meter = self._session.replica, self._session.meter
        machines = {other[3] for other in figures}
        if replica.any(len(machines) > 1, meter, "check: whose machines differ"):
            self._auto = False
            self._session.meter.checks = (
                "weights are not compared: ranks compute on different machines, whose results may "
                "differ in the last bits "
                f"({', '.join(sorted(machines))}); check_every=n compares "
                "them all the same"
            )
            return
        # Every rank computes n from the same gathered figures, so no further message is needed.
        every, cost, step_s = steps_between(*([other[i] for other in figures] for i in range(3)))
        self.every = replica.most(every, meter, "check: how often")
        self._report(
            f": {cost * 1e3:.1f} ms, {100 * cost / (self.every * step_s):.2f} % of the time of "
            "training"
        )

    def _commons(self) -> list[tuple[str, Tensor]]:
        """List the tensors that every rank must hold equal now, of what trains."""
        session = self._session
        if session.on_gradients:
            return self._params()
        named: list[tuple[str, Tensor]] = []
        for bucket in session.buckets:
            common = session.strategy.on.common(bucket, bucket.state)
            if common is None:
                named += zip(bucket.names, bucket.params, strict=True)
            else:
                named += [(part.name, common[part.begin : part.end]) for part in bucket.spec.parts]
        return named

    def _params(self) -> list[tuple[str, Tensor]]:
        return [*self._session.trained()]

    def _agree(
        self, names: Sequence[str], sums: Sequence[int], text: str, more: bytes = b""
    ) -> list[bytes]:
        """Compare checksums; return every rank's further bytes, or raise on every rank where they
        differ."""
        with self._session.replica.agreeing(self._session.meter, "check"):
            return self._agree_across(names, sums, text, more)
        raise AssertionError("the block returns or raises")

    def _agree_across(
        self, names: Sequence[str], sums: Sequence[int], text: str, more: bytes
    ) -> list[bytes]:
        session, step = self._session, self._clock.step
        # 1. A digest of all checksums, 16 bytes from each rank: equal in nearly every case.
        packed = struct.pack(f"<{len(sums)}q", *sums)
        own = hashlib.blake2b(packed, digest_size=16).digest()
        digests = session.all_gather(own + more, f"step {step}: comparing checksums")
        if all(other[:16] == own for other in digests):
            return [other[16:] for other in digests]
        # 2. Where it differs on any rank, every rank comes here: exchange the checksums themselves,
        #    8 bytes a tensor, and name the first that differs.
        every = session.all_gather(packed, f"step {step}: check, which of them differ")
        for i, name in enumerate(names):
            words = [other[8 * i : 8 * i + 8] for other in every]
            if differing := [rank for rank, word in enumerate(words) if word != words[0]]:
                raise DisagreementError(text.format(name=repr(name), ranks=differing, step=step))
        raise DisagreementError(
            f"step {step}: ranks hold other numbers of parameters: "
            f"{[len(other) // 8 for other in every]}"
        )

    def _report(self, cost: str = "") -> None:
        if self.every is not None and self._together:
            self._session.meter.checks = (
                f"weights are compared between ranks every {self.every} steps{cost}"
            )


_BEGAN = (
    "ranks did not begin with the same weights: ranks {ranks} do not hold rank 0's {name}, so it "
    "was loaded or changed after attach, and "
    "not on every rank alike. Load before attach, which gives every rank rank 0's; or load the "
    "same on every rank"
)
_DIFFERS = (
    "{name} differs at step {step}: ranks {ranks} do not hold rank 0's bits. A message or memory "
    "was damaged, or something other than "
    "the loop changes weights on one rank. Go on from a checkpoint of before; check_every= and "
    "sync.check() narrow it down"
)


def comparable(session: Session, clock: Clock) -> list[tuple[str, Tensor]]:
    """List what ranks must hold equal now, by name and in the model's order.

    Raises:
        NotLandedError: they differ rightly; see `Syncer.check`.
    """
    named: list[tuple[str, Tensor]] = []
    # 1. Of each bucket the anchor, where the target has one, else the parameters, if ranks hold
    #    them equal now.
    for bucket in session.buckets:
        common = session.strategy.on.common(bucket, bucket.state)
        if common is None:
            if not session.strategy.compares:
                raise NotLandedError(
                    f"check(): with {session.strategy.what!r} over {session.strategy.how!r} ranks "
                    "never "
                    "hold equal parameters, "
                    "only near ones; compare what `with sync.common_weights():` shows"
                )
            if clock.steps_since_sync:
                raise NotLandedError(
                    f"check(): ranks have taken {clock.steps_since_sync} steps of their own since "
                    "all "
                    "parameters last landed at once, by "
                    f"{session.strategy.when!r}; compare what `with sync.common_weights():` shows"
                )
            common = bucket.weights()
        named.extend((part.name, common[part.begin : part.end]) for part in bucket.spec.parts)
    # 2. Parameters that do not train, then all by the model's order: the first difference that an
    #    error names is then the earliest layer.
    named.extend(session.frozen)
    order = {
        plain_name(name): index for index, (name, _) in enumerate(session.model.named_parameters())
    }
    named.sort(key=lambda item: order.get(item[0], len(order)))
    # 3. Buffers are equal since the last landing, until the next forward pass in training.
    buffers = [] if clock.steps_since_sync else session.shared_buffers()
    return named + buffers


def steps_between(
    hashing: Sequence[float], sharing: Sequence[float], stepping: Sequence[float]
) -> tuple[int, float, float]:
    """Return n, the seconds of one comparison, and those of a step, from every rank's own seconds.

    Example:
        >>> steps_between([0.5, 0.4], sharing=[0.1, 0.3], stepping=[2.0, 1.5])
        (100, 0.6, 1.5)
    """
    # Hashing: the slowest rank's. Exchanging: the least, as the others' seconds include waiting for
    # the last rank. A step: the shortest, where comparing weighs most.
    cost, step_s = max(hashing) + min(sharing), min(stepping)
    return rounded(cost / (MOST * step_s)), cost, step_s


def rounded(least: float) -> int:
    """Return the next of 1, 2, 5, 10, 20, 50, … that is not below.

    Example:
        >>> [rounded(x) for x in (0.2, 3, 5, 51, 1001)]
        [1, 5, 5, 100, 2000]
    """
    scale = int(10 ** math.floor(math.log10(max(least, 1.0))))
    return next(step * scale for step in (1, 2, 5, 10) if step * scale >= least)


def _machine(device: torch.device) -> str:
    """Name what decides the last bits of this rank's arithmetic."""
    kind: Any = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    if device.type == "cpu":
        kind = torch.backends.cpu.get_cpu_capability()
    return f"{kind}, torch {torch.__version__}"
