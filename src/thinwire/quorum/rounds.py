"""Rounds of local steps that close with a quorum: no rank waits for a certain other, and ranks may
be late, leave and come.

The period of `every(H)` begins with the same anchor on every rank that is in time. Steps, for each
rank:
    1. take H local steps from the anchor of round r; pin delta = anchor - w, encoded, to the board,
       and offer it to the open round
    2. in time (round r is open): wait until it closes. It does when all who are expected have come
       in time, or when the ranks of the quorum have and `grace_s` has passed since. Expected are
       those who were in time for the round before, and whoever has just come late by one round,
       once: of a hiccup the grace makes good, a slow rank is waited for no more
    3. late (round r is closed): the contribution counts in the open round, and this rank waits for
       nobody
    4. of every closed round, in order: anchor = outer(anchor, sum of s_k delta_k), s_k = w_k /
       sqrt(1 + late_k), divided by their sum; then w = the newest anchor, from which the next H
       steps go
A round's members are whoever the first to close it saw there, so every rank applies the same
contributions in the same order, late or not, and holds the same anchors. A late contribution is
dropped only if its process ends, or the run begins anew from a checkpoint, before any round has
counted it. (FedBuff, Nguyen et al. 2022, arXiv:2106.06639: buffered rounds and the weight of what
is late; a quorum with grace as in torchft.)
"""

from __future__ import annotations

import json
import math
import time
import uuid
import warnings
from collections.abc import Callable

import torch
from torch import Tensor

from thinwire.core import RankContext, Ranks
from thinwire.engine import agree
from thinwire.engine.buckets import FlatBucket
from thinwire.engine.options import persistent_buffers
from thinwire.engine.steps import LocalSteps
from thinwire.engine.syncer import Syncer
from thinwire.errors import (
    AttachError,
    CheckpointError,
    DisagreementError,
    FlightError,
    NonFiniteError,
    PayloadError,
    QuorumError,
)
from thinwire.kernels import fast
from thinwire.quorum.contributions import Contributions
from thinwire.quorum.entries import Offer, pack, read_json, read_ranks, unpack
from thinwire.quorum.rendezvous_store import Board, Gone, look


class QuorumSyncer(Syncer):
    """A strategy at work in rounds that close with a quorum: what `thinwire.join` returns. Close
    it, or use it as a context.

    `step` is H times the rounds that have closed, and the local steps since; a rank that was late
    jumps ahead. A loop ends alike on all
    ranks: `while sync.step < steps`.
    """

    board: Board
    version: int = 0
    """Rounds whose contributions are in this rank's anchor."""
    members: Ranks = ()
    """The ranks that the last of these rounds counted."""
    _in_time: Ranks = ()
    _missed: Ranks = ()  # by one round

    def _make_steps(self) -> LocalSteps:
        return _Rounds(self)

    def enter(self, board: Board, quorum: int, grace_s: float, limit_s: float) -> None:
        """Take up the newest anchor, or give the first."""
        self.board, self._quorum, self._grace_s, self._limit_s = board, quorum, grace_s, limit_s
        rank, self._weight, self._number = self.driver.rank, 1.0, 0
        board.drop(f"left/{rank}")
        self._life = uuid.uuid4().hex[:12]
        self._contributions = Contributions(board, self.strategy.what, self.buckets, self._context)
        self._pending: dict[Offer, int] = {}  # offered and not counted yet, and to which round
        if board.begin(-1, self._next_name()):
            board.serve(0, self._shot())
            self.watch.restart()
        else:
            self._take_up()

    # -- what users call
    # ----------------------------------------------------------------------------------------------

    def weigh(self, weight: float) -> None:
        """Give this rank's weight for the rounds to come. It travels with each contribution."""
        if not (math.isfinite(weight) and weight >= 0):
            raise AttachError(f"weigh({weight}): a weight is finite, and at least 0")
        if weight > self.board.bounds.weight:
            raise AttachError(
                f"weigh({weight:g}): the ranks of this run have agreed on at most "
                f"{self.board.bounds.weight:g}. Give all of them "
                "thinwire.join(max_weight=…)"
            )
        self._weight = float(weight)

    def check(self) -> None:
        """Prove that the anchor is that of every other rank that has checked the same version of
        it.

        Raises:
            DisagreementError: on the later of two ranks whose anchors differ; it names the first
                parameter that does.
        """
        named = [
            (part.name, self._anchor(bucket)[part.begin : part.end])
            for bucket in self.buckets
            for part in bucket.spec.parts
        ]
        named += self.session.frozen
        mine = [agree.hash_of(tensor).hex() for _, tensor in named]
        key = f"hash/{self.board.start}/{self.version}"
        first = read_json(
            self.board.claim(key, json.dumps([self.driver.rank, *mine])), most=1 << 26
        )
        if not (isinstance(first, list) and len(first) == 1 + len(mine)):
            raise FlightError(
                f"check(): the store holds under {key!r} what no rank of this run writes: "
                "something else writes there"
            )
        for (name, _), own, other in zip(named, mine, first[1:], strict=True):
            if own != other:
                raise DisagreementError(
                    f"{name!r} differs after {self.version} rounds: rank {self.driver.rank} has "
                    f"not rank {first[0]}'s bits"
                )

    def all_gather(self, payload: bytes, label: str) -> list[bytes]:
        raise AttachError(
            "ranks of a quorum never wait for all: there is nothing that every rank could share "
            "at once"
        )

    def resume(self, step: int, steps_since_sync: int) -> None:
        """Let the run begin where a checkpoint ends; or take up its newest anchor, where it begins
        with a newer one or has gone on.

        Raises:
            CheckpointError: rounds have closed that went on from something older.
        """
        super().resume(step, steps_since_sync)
        self.version, self.members, self._in_time, self._missed = (
            step // self.strategy.when.period,
            (),
            (),
            (),
        )
        self._pending.clear()
        if self.board.begin(self.version, self._next_name()):
            self.board.serve(self.version, self._shot())
        elif self.board.follow() != self.version:
            saved = self.version
            self._take_up()
            if saved > self.version:
                raise CheckpointError(
                    f"this state is of round {saved}, and the run in this store has come to round "
                    f"{self.version} without it. Load the "
                    "newest state in a new store, before the first round closes; or join this run "
                    "without a state"
                )
            warnings.warn(
                f"rank {self.driver.rank} loaded round {saved}, and the run in this store goes on "
                f"from round {self.version}: it takes that "
                "anchor, and keeps its optimiser and residuals",
                stacklevel=4,
            )

    # -- a round
    # ------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def stepped(self, rested: bool = False) -> None:
        """The end of an optimiser step."""
        clock = self.clock
        clock.worked = False
        self.session.refuse_changed()
        clock.advance(synced=False)
        self.meter.steps += 1
        if clock.steps_since_sync == self.strategy.when.period:
            self._round()
            clock.steps_since_sync = 0

    def _round(self) -> None:
        """Contribute; wait for the round if in time; go on from the newest anchor."""
        began, start = self.version, self.board.start
        blob = self._contribution(began)
        mine = Offer(self._next_name(), len(blob), began)
        self._catch_up()
        if self.board.start == start:
            begun = time.perf_counter()
            self.board.pin(mine.name, blob)
            self._offer(mine)
            self.meter.rows[0].wire_s += time.perf_counter() - begun
            if began == self.version:
                self._await(began)
                self._catch_up()
                self._serve()
        if self.board.start != start:
            warnings.warn(
                f"rank {self.driver.rank} goes over to a checkpoint that another rank has loaded, "
                f"of round {self.version}: its own steps "
                "began elsewhere, and do not count",
                stacklevel=4,
            )
        counts = self._pending.get(mine)
        if counts is not None:
            share = f"weighed by {1 / math.sqrt(1 + counts - began):.2f}"
            warnings.warn(
                f"rank {self.driver.rank} came late: round {began} had closed. What it learned "
                f"counts in round {counts}, {share}, and it "
                "goes on from the newest anchor",
                stacklevel=4,
            )
        self._at_anchor()
        self.landings.written.update(bucket.index for bucket in self.buckets)

    def _contribution(self, began: int) -> bytes:
        """This rank's delta, encoded, bucket by bucket and slice by slice."""
        payloads, ctx = [], self._context(self.driver.rank, began)
        for bucket, row in zip(self.buckets, self.meter.rows, strict=True):
            begun, delta = time.thread_time(), self.strategy.on.read(bucket, bucket.state, 1.0)
            if (bad := int(fast.first_nonfinite(delta))) >= 0:
                raise NonFiniteError(
                    f"round {began}: this rank's {bucket.name_at(bad)!r} is not finite. The "
                    "others go on without it"
                )
            for part in bucket.slices:
                span = delta[part.spec.begin : part.spec.end]
                packet = next(
                    self.strategy.what.rounds(span, part.spec, part.state.child("codec"), ctx)
                )
                payloads.append(packet.payload.cpu().clone())
                row.sent_bytes += packet.payload.numel()
                row.flights += 1
            spent = time.thread_time() - begun
            row.encode_s += spent
            self.meter.beside_s -= (
                spent  # this thread is the loop's own, whose time is counted there
            )
        return pack({"rank": self.driver.rank, "began": began, "weight": self._weight}, payloads)

    def _next_name(self) -> str:
        self._number += 1
        return f"{self.driver.rank}.{self._life}.{self._number}"

    def _offer(self, offer: Offer) -> None:
        self._pending[offer] = self.version
        self.board.come(self.version, offer)

    def _await(self, round_: int) -> None:
        """Until the round has closed, or to close it; or until the run begins anew, from a
        checkpoint."""
        expected = set(self._in_time or range(self.driver.world))
        reached: float | None = None  # when the quorum was

        def closed() -> bool:
            nonlocal reached
            if self.board.members(round_) is not None or self.board.left_behind():
                return True
            self._serve()  # the quorum may lack just the newcomer that waits for an anchor
            came = self._contributions.usable(round_)
            here = {offer.rank for offer in came if offer.began == round_}
            if len(here) < self._quorum:
                return False
            reached = time.monotonic() if reached is None else reached
            just_late = {offer.rank for offer in came if offer.began == round_ - 1}.difference(
                self._missed
            )
            missing = [
                rank for rank in (expected | just_late) - here if not self.board.has(f"left/{rank}")
            ]
            if missing and time.monotonic() - reached < self._grace_s:
                return False
            if self.board.settle():
                self.board.close_round(round_, came)
            return True

        begun = time.perf_counter()
        if not look(lambda: closed() or reached is not None, self._limit_s):
            ranks = sorted(
                {
                    offer.rank
                    for offer in self._contributions.usable(round_)
                    if offer.began == round_
                }
            )
            raise QuorumError(
                f"round {round_}: only ranks {ranks} came within {self._limit_s:g} s, and "
                f"{self._quorum} make the quorum. Start others, "
                "which take up the newest anchor with thinwire.join; or begin again from a "
                "checkpoint with a smaller quorum"
            )
        look(closed, math.inf)  # which it is once the grace is over
        self.meter.rows[0].exposed_s += time.perf_counter() - begun
        members = self.board.members(round_)
        ranks_then = {offer.rank for offer in members or []}
        absent = sorted(expected - ranks_then)
        if absent and members is not None:
            who = " and ".join(f"rank {rank}" for rank in absent)
            warnings.warn(
                f"round {round_} closed without {who}, by the ranks {sorted(ranks_then)}",
                stacklevel=5,
            )

    def _catch_up(self) -> None:
        """Apply every round that has closed; what of this rank's it did not count is offered to the
        open one.

        Where the run begins anew, from a checkpoint: take up its newest anchor.
        """
        if self.board.left_behind():
            self._pending.clear()
            self._take_up()
        while (members := self.board.members(self.version)) is not None:
            try:
                self._apply(self.version, members)
            except Gone:
                self._ask_for_snapshot()
                continue
            self.version += 1
        for offer, round_ in list(self._pending.items()):
            if round_ < self.version:
                if offer in (self.board.members(round_) or []):
                    del self._pending[offer]
                else:
                    self._offer(offer)

    def _apply(self, round_: int, members: list[Offer]) -> None:
        """Put the weighted mean of a round's contributions where it belongs: on every rank the same
        arithmetic, on the host.

        A contribution that does not decode counts on no rank: all of them read the same bytes.
        """
        totals = [torch.zeros(bucket.spec.numel, dtype=bucket.spec.work) for bucket in self.buckets]
        weighed, counted = 0.0, []
        for offer in members:
            found = self._contributions.values(offer)
            if found is None:
                continue
            weight, opened = found
            counted.append(offer)
            share = weight / math.sqrt(1 + round_ - offer.began)
            weighed += share
            for total, values in zip(totals, opened, strict=True):
                total.add_(values, alpha=share)
        if not weighed:
            raise FlightError(f"round {round_}: all who came weigh 0")
        for bucket, total in zip(self.buckets, totals, strict=True):
            self.strategy.on.write(bucket, total.div_(weighed).to(bucket.device), bucket.state)
        self._contributions.forget(members)
        self.members = tuple(sorted({offer.rank for offer in counted}))
        self._in_time, self._missed = (
            tuple(offer.rank for offer in counted if offer.began == round_ - by) for by in (0, 1)
        )
        self.meter.world = max(2, len(self.members))

    def _at_anchor(self) -> None:
        """Begin a round."""
        self.clock.step = self.version * self.strategy.when.period
        for bucket in self.buckets:
            bucket.set_weights(self._anchor(bucket).to(bucket.device))

    def _anchor(self, bucket: FlatBucket) -> Tensor:
        anchor = self.strategy.on.common(bucket, bucket.state)
        assert anchor is not None, "of deltas"
        return anchor

    def _context(self, rank: int, began: int) -> RankContext:
        """Who speaks in a contribution, and when: the same draws for all who began with the same
        anchor."""
        return RankContext(
            rank, (rank,), (began + 1) * self.strategy.when.period - 1, self.options.seed
        )

    # -- what a newcomer needs
    # ----------------------------------------------------------------------------------------

    def _take_up(self) -> None:
        """Begin a round with the newest anchor of the run that is on the board."""

        def newest() -> tuple[int, int, int] | None:
            self.board.follow()
            return self.board.snapshot()

        def taken() -> bool:
            floor = self.board.floor
            version, nbytes, _ = self._look_for(newest, "the first rank's parameters")
            if floor <= version:
                return self._took(version, nbytes)
            self._ask_for_snapshot()
            return True

        self._until(taken)
        self._catch_up()
        self._at_anchor()
        self.clock.began_at, self.clock.steps_since_sync = self.step, 0
        self.watch.restart()

    def _shared_tensors(self) -> list[Tensor]:
        """What all hold equal beside the anchor's own state: frozen parameters, and the buffers
        that are saved."""
        return [
            *(param.data for _, param in self.session.frozen),
            *(buffer for _, buffer in persistent_buffers(self.model)),
        ]

    def _shot(self) -> bytes:
        leaves = [leaf.value for bucket in self.buckets for _, leaf in bucket.state.walk()]
        return pack(
            {"members": self.members, "in_time": self._in_time, "missed": self._missed},
            leaves + self._shared_tensors(),
        )

    def _take(self, version: int, nbytes: int) -> None:
        """Go on from a snapshot.

        Raises:
            Gone: there is a newer one.
        """
        leaves, shared = (
            [leaf for bucket in self.buckets for _, leaf in bucket.state.walk()],
            self._shared_tensors(),
        )
        try:
            told, tensors = unpack(self.board.shot(version, nbytes))
            expected = [
                (value.dtype, value.shape) for value in (*(leaf.value for leaf in leaves), *shared)
            ]
            if [(tensor.dtype, tensor.shape) for tensor in tensors] != expected:
                raise PayloadError("it has other tensors than this model")
            members, in_time, missed = (
                read_ranks(told.get(name), self.board.bounds)
                for name in ("members", "in_time", "missed")
            )
        except PayloadError as error:
            raise FlightError(
                f"what the store holds as the anchor of round {version} is none: {error}"
            ) from error
        for leaf, value in zip(leaves, tensors, strict=False):
            leaf.value = value.to(leaf.value)
        with torch.no_grad():
            for own, value in zip(shared, tensors[len(leaves) :], strict=True):
                own.copy_(value)
        self.version, self.members, self._in_time, self._missed = version, members, in_time, missed

    def _ask_for_snapshot(self) -> None:
        """Have a rank that is in time put up its anchor, and take it."""
        asked = self.board.count("wanted")

        def fresh() -> tuple[int, int, int] | None:
            newest = self.board.snapshot()
            return newest if newest is not None and newest[2] >= asked else None

        def taken() -> bool:
            newest = self._look_for(
                fresh,
                "the newest anchor, which a rank that is in time puts up at the end of a round",
            )
            return self._took(newest[0], newest[1])

        self._until(taken)

    def _took(self, version: int, nbytes: int) -> bool:
        """Go on from a snapshot; whether it was still there."""
        try:
            self._take(version, nbytes)
        except Gone:  # there is a newer one
            return False
        return True

    def _until(self, taken: Callable[[], bool]) -> None:
        if not look(taken, self._limit_s):
            raise QuorumError(
                f"rank {self.driver.rank}: no anchor that the store announced within "
                f"{self._limit_s:g} s was there"
            )

    def _serve(self) -> None:
        """Put up the anchor if somebody waits for it; one of those that are in time does."""
        newest, me = self.board.snapshot(), f"{self.driver.rank}.{self._life}"
        served = newest[2] if newest is not None else 0
        if (
            self.board.count("wanted", 0) > served
            and self.board.claim(f"serve/{self.version}", me) == me
        ):
            self.board.serve(self.version, self._shot())

    def _look_for(
        self, found: Callable[[], tuple[int, int, int] | None], what: str
    ) -> tuple[int, int, int]:
        seen: list[tuple[int, int, int]] = []

        def looked() -> bool:
            there = found()
            seen.extend([] if there is None else [there])
            return there is not None

        if not look(looked, self._limit_s):
            raise QuorumError(
                f"rank {self.driver.rank} waited {self._limit_s:g} s for {what}, and it did not "
                "come. Do the others run?"
            )
        return seen[-1]


class _Rounds(LocalSteps):
    """Hands the optimiser's steps on to rounds."""

    def __init__(self, sync: QuorumSyncer) -> None:
        super().__init__(
            sync.session,
            sync.clock,
            sync.flights,
            sync.landings,
            sync.weights,
            sync.watch,
            sync.checks,
            None,
        )
        self._sync = sync

    def stepped(self, rested: bool = False) -> None:
        self._sync.stepped(rested)
