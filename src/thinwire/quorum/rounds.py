"""Carry out rounds of local steps that close with a quorum.

No rank waits for a certain other, and ranks may be late, leave and come.

The period of `every(H)` begins with the same anchor on every rank that is in time. Steps, for each
rank:

    1. take H local steps from the anchor of round r; post delta = anchor - w, encoded, and enter it
       in the open round
    2. in time (round r is open): wait until it closes. It closes when all expected ranks are in
       time, or when the quorum is and `grace_s` has passed since. Expected are the ranks that were
       in time for the round before, and, once, a rank that has just come late by one round: the
       grace makes good for a hiccup, but a slow rank is not waited for any more
    3. late (round r is closed): the contribution counts in the open round, and this rank waits for
       nobody
    4. of every closed round, in order: anchor = outer(anchor, sum of s_k delta_k), where
       s_k = w_k / sqrt(1 + late_k), divided by their sum; then w = the newest anchor, from which
       the next H steps start

The first rank that closes a round writes down its members. So every rank applies the same
contributions in the same order, late or not, and holds the same anchors. A late contribution is
dropped only if its process ends, or the run starts again from a checkpoint, before any round has
counted it.

Nguyen et al. 2022, "FedBuff", arXiv:2106.06639: buffered rounds, and the weight of late
contributions. A quorum with grace is that of torchft.
"""

from __future__ import annotations

import math
import time
import warnings
from dataclasses import dataclass

import torch
from torch import Tensor

from thinwire.core import RankContext
from thinwire.engine.buckets import FlatBucket
from thinwire.engine.clock import Clock
from thinwire.engine.guards import Watch
from thinwire.engine.session import Session
from thinwire.errors import FlightError, NonFiniteError, QuorumError
from thinwire.kernels import fast
from thinwire.quorum.anchor import Anchor
from thinwire.quorum.contributions import ContributionReader
from thinwire.quorum.entries import Contribution, pack
from thinwire.quorum.rendezvous_store import Gone, RendezvousStore, poll


@dataclass(frozen=True)
class Limits:
    """A set of limits that decide when a round closes.

    quorum: ranks that close it.
    grace_s: seconds that a round with a quorum waits for the other expected ranks.
    limit_s: seconds that a round waits for its quorum.
    """

    quorum: int
    grace_s: float
    limit_s: float


def late_weight(rounds: int) -> float:
    """Return the factor of a contribution that comes some rounds late: 1 / sqrt(1 + rounds).

    All ranks of a run must use the same rule, or their anchors differ.
    """
    return 1 / math.sqrt(1 + rounds)


class Rounds:
    """A rank's part in rounds that close with a quorum.

    Args:
        session: what was attached.
        clock: where its schedule stands.
        watch: refuses what would let ranks drift apart.
        store: where contributions and snapshots are.
        limits: when a round closes.
    """

    def __init__(
        self,
        session: Session,
        clock: Clock,
        watch: Watch,
        store: RendezvousStore,
        limits: Limits,
    ) -> None:
        self.session, self.clock, self.watch, self.store = session, clock, watch, store
        self.quorum, self.grace_s, self.limit_s = limits.quorum, limits.grace_s, limits.limit_s
        self.anchor = Anchor(session, store, limits.limit_s)
        self.reader = ContributionReader(
            store, session.strategy.what, session.buckets, self._context
        )
        self.weight = 1.0
        """This rank's weight in the rounds to come."""
        self.closed_any = False
        """Whether this rank has gone on from an anchor since it began."""
        self._pending: dict[Contribution, int] = {}  # entered and not counted yet: in which round

    # -- where a rank starts

    def join(self) -> None:
        """Take the newest anchor of the run, or start the run with this rank's."""
        # An earlier process of this rank may have recorded that it left.
        self.store.delete(f"left/{self.anchor.rank}")
        # Version -1: any checkpoint that a rank loads is newer than this start.
        if self.store.start_run(-1, self.anchor.next_name()):
            self.store.post_snapshot(0, self.anchor.packed())
            self.watch.restart()
        else:
            self._take_newest()

    def restart(self, version: int) -> bool:
        """Continue from a checkpoint before round `version`.

        Start the run there, or take its newest anchor where it starts with a newer one or has gone
        on.

        Returns:
            Whether this rank took the anchor of the run.
        """
        self.anchor.restart(version)
        self._pending.clear()
        if self.store.start_run(version, self.anchor.next_name()):
            self.anchor.post()
            return False
        if self.store.adopt_start() == version:
            return False
        self._take_newest()
        return True

    # -- a step, and a round

    @torch.no_grad()
    def stepped(self, rested: bool = False) -> None:
        """End an optimiser step, and with the last one of a period the round."""
        clock = self.clock
        clock.worked = False
        self.session.refuse_changed()
        clock.advance(synced=False)
        self.session.meter.steps += 1
        if clock.steps_since_sync == self.session.strategy.when.period:
            self._round()
            clock.steps_since_sync = 0

    def skip(self) -> None:
        """Count a step without one of this rank's own."""
        with self.session.meter.working():
            self.stepped(rested=True)

    def _round(self) -> None:
        """Contribute; wait for the round if in time; continue from the newest anchor."""
        began, start, meter = self.anchor.version, self.store.start, self.session.meter
        rank = self.anchor.rank
        # 1. encode the delta, and apply what has closed meanwhile
        blob = self._encoded(began)
        mine = Contribution(self.anchor.next_name(), len(blob), began)
        self._catch_up()
        # 2. enter it in the open round; in time, wait until that closes
        if self.store.start == start:
            begun = time.perf_counter()
            self.store.post(mine.name, blob)
            self._enter(mine)
            meter.rows[0].wire_s += time.perf_counter() - begun
            if began == self.anchor.version:
                self._wait(began)
                self._catch_up()
                self.anchor.post_if_requested()
        if self.store.start != start:
            warnings.warn(
                f"rank {rank} goes over to a checkpoint that another rank has loaded, of round "
                f"{self.anchor.version}: its own steps began elsewhere, and do not count",
                stacklevel=4,
            )
        # 3. late: it counts in a later round
        counts_in = self._pending.get(mine)
        if counts_in is not None:
            warnings.warn(
                f"rank {rank} came late: round {began} had closed. What it learned counts in round "
                f"{counts_in}, weighed by {late_weight(counts_in - began):.2f}, and it goes "
                "on from the newest anchor",
                stacklevel=4,
            )
        # 4. the next steps start from the newest anchor
        self._set_weights()
        self.closed_any = True

    def _encoded(self, began: int) -> bytes:
        """Encode this rank's delta, bucket by bucket and slice by slice."""
        session, payloads = self.session, []
        ctx = self._context(self.anchor.rank, began)
        for bucket, row in zip(session.buckets, session.meter.rows, strict=True):
            begun, delta = time.thread_time(), session.strategy.on.read(bucket, bucket.state, 1.0)
            if (bad := int(fast.first_nonfinite(delta))) >= 0:
                raise NonFiniteError(
                    f"round {began}: this rank's {bucket.name_at(bad)!r} is not finite. The "
                    "others go on without it"
                )
            # One packet for each slice, with the residual that the codec keeps between rounds.
            for part in bucket.slices:
                span = delta[part.spec.begin : part.spec.end]
                packet = next(
                    session.strategy.what.rounds(span, part.spec, part.state.child("codec"), ctx)
                )
                payloads.append(packet.payload.cpu().clone())
                row.sent_bytes += packet.payload.numel()
                row.flights += 1
            spent = time.thread_time() - begun
            row.encode_s += spent
            session.meter.beside_s -= spent  # this is the loop's thread, which is counted there
        head = {"rank": self.anchor.rank, "began": began, "weight": self.weight}
        return pack(head, payloads)

    def _enter(self, contribution: Contribution) -> None:
        self._pending[contribution] = self.anchor.version
        self.store.enter(self.anchor.version, contribution)

    def _wait(self, round_: int) -> None:
        """Wait until the round has closed, or close it; or until the run starts again from a
        checkpoint.

        Raises:
            QuorumError: too few ranks came within the limit.
        """
        anchor = self.anchor
        # Before the first round all ranks of the world are expected.
        expected = set(anchor.in_time or range(self.session.driver.world))
        quorum_since: float | None = None

        def closed() -> bool:
            nonlocal quorum_since
            if self.store.members(round_) is not None or self.store.start_changed():
                return True
            anchor.post_if_requested()  # the quorum may lack just the newcomer that waits for it
            # a. The quorum: ranks that began with this round's anchor.
            entered = self.reader.usable(round_)
            in_time = {each.rank for each in entered if each.began == round_}
            if len(in_time) < self.quorum:
                return False
            quorum_since = time.monotonic() if quorum_since is None else quorum_since
            # b. The grace, for ranks that were in time before, and for one that has just come late
            # by one round. A rank that was late in the round before too is not waited for, nor one
            # that has left.
            one_late = {each.rank for each in entered if each.began == round_ - 1}
            missing = [
                rank
                for rank in (expected | one_late.difference(anchor.missed)) - in_time
                if not self.store.has(f"left/{rank}")
            ]
            if missing and time.monotonic() - quorum_since < self.grace_s:
                return False
            # c. Close it; no other start may replace this one from now on.
            if self.store.fix_start():
                self.store.close_round(round_, entered)
            return True

        # 1. until there is a quorum, or the round is closed
        begun = time.perf_counter()
        if not poll(lambda: closed() or quorum_since is not None, self.limit_s):
            ranks = sorted(
                {each.rank for each in self.reader.usable(round_) if each.began == round_}
            )
            raise QuorumError(
                f"round {round_}: only ranks {ranks} came within {self.limit_s:g} s, and "
                f"{self.quorum} make the quorum. Start others, which take up the newest anchor "
                "with thinwire.join; or begin again from a checkpoint with a smaller quorum"
            )
        # 2. until it is closed, which it is once the grace is over
        poll(closed, math.inf)
        self.session.meter.rows[0].exposed_s += time.perf_counter() - begun
        # 3. name the ranks that were expected and did not come
        members = self.store.members(round_)
        counted = {each.rank for each in members or []}
        absent = sorted(expected - counted)
        if absent and members is not None:
            names = " and ".join(f"rank {rank}" for rank in absent)
            warnings.warn(
                f"round {round_} closed without {names}, by the ranks {sorted(counted)}",
                stacklevel=5,
            )

    def _catch_up(self) -> None:
        """Apply every round that has closed; enter what they did not count in the open one.

        Where the run starts again from a checkpoint, take its newest anchor first.
        """
        # 1. Another rank has loaded a checkpoint: what this one entered belongs to no round of it.
        if self.store.start_changed():
            self._pending.clear()
            self._take_newest()
        # 2. Apply the closed rounds in order. Where their contributions are gone, a snapshot
        #    serves.
        while (members := self.store.members(self.anchor.version)) is not None:
            try:
                self._apply(self.anchor.version, members)
            except Gone:
                self.anchor.request()
                continue
            self.anchor.version += 1
        # 3. What a closed round did not count is entered in the open one.
        for contribution, round_ in list(self._pending.items()):
            if round_ < self.anchor.version:
                if contribution in (self.store.members(round_) or []):
                    del self._pending[contribution]
                else:
                    self._enter(contribution)

    def _apply(self, round_: int, members: list[Contribution]) -> None:
        """Write the weighted mean of a round's contributions: the same arithmetic on every rank, on
        the host.

        A contribution that does not decode counts on no rank, as all of them read the same bytes.

        Raises:
            Gone: a contribution has been cleared away.
            FlightError: all contributions weigh 0.
        """
        # 1. Sum in the order of `members`, the same on all ranks; a late one counts for less.
        buckets = self.session.buckets
        totals = [torch.zeros(bucket.spec.numel, dtype=bucket.spec.work) for bucket in buckets]
        weight_sum, counted = 0.0, []
        for contribution in members:
            read = self.reader.values(contribution)
            if read is None:
                continue
            weight, values = read
            counted.append(contribution)
            weight *= late_weight(round_ - contribution.began)
            weight_sum += weight
            for total, each in zip(totals, values, strict=True):
                total.add_(each, alpha=weight)

        # 2. Write the mean into the model.
        if not weight_sum:
            raise FlightError(f"round {round_}: all who came weigh 0")
        for bucket, total in zip(buckets, totals, strict=True):
            mean = total.div_(weight_sum).to(bucket.device)
            self.session.strategy.on.write(bucket, mean, bucket.state)

        # 3. Note who counted.
        self.reader.forget(members)
        anchor = self.anchor
        anchor.members = tuple(sorted({each.rank for each in counted}))
        anchor.in_time, anchor.missed = (
            tuple(each.rank for each in counted if each.began == round_ - late) for late in (0, 1)
        )
        self.session.meter.world = max(2, len(anchor.members))

    def _take_newest(self) -> None:
        """Start a round with the newest anchor of the run in the store."""
        self.anchor.load_newest()
        self._catch_up()
        self._set_weights()
        self.clock.began_at, self.clock.steps_since_sync = self.clock.step, 0
        self.watch.restart()

    def _set_weights(self) -> None:
        """Set the weights and the clock to the anchor."""
        self.clock.step = self.anchor.version * self.session.strategy.when.period
        for bucket in self.session.buckets:
            bucket.set_weights(self.anchor_of(bucket).to(bucket.device))

    def anchor_of(self, bucket: FlatBucket) -> Tensor:
        """Return the anchor's values of a bucket."""
        values = self.session.strategy.on.common(bucket, bucket.state)
        assert values is not None, "of deltas"
        return values

    def _context(self, rank: int, began: int) -> RankContext:
        """Return the context of a contribution: the same random numbers for all ranks that began
        with the same anchor."""
        session = self.session
        step = (began + 1) * session.strategy.when.period - 1
        return RankContext(rank, (rank,), step, session.options.seed)
