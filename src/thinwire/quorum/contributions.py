"""Read contributions to rounds: once, checked against the model, and decoded."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from thinwire.core import Codec, RankContext
from thinwire.engine.buckets import FlatBucket
from thinwire.errors import FlightError, PayloadError
from thinwire.kernels import fast
from thinwire.quorum.entries import Contribution, read_weight, unpack
from thinwire.quorum.rendezvous_store import Gone, RendezvousStore


class ContributionReader:
    """A reader of contributions, which reads and checks each of them once.

    Args:
        store: where they are.
        codec: what they are encoded with.
        buckets: what they are deltas of.
        ctx: of a rank and the round that it began with.
    """

    def __init__(
        self,
        store: RendezvousStore,
        codec: Codec,
        buckets: Sequence[FlatBucket],
        ctx: Callable[[int, int], RankContext],
    ) -> None:
        self._store, self._codec, self._buckets, self._context = store, codec, buckets, ctx
        # Weight and payloads by contribution; `None`: no rank can have made it.
        self._read: dict[Contribution, tuple[float, list[Tensor]] | None] = {}
        self._absent: set[Contribution] = set()

    def usable(self, round_: int) -> list[Contribution]:
        """Return the contributions of a round that can count: their bytes are there, and a rank can
        have made them."""
        return [
            contribution
            for contribution in self._store.entered(round_)
            if self._is_there(contribution)
        ]

    def values(self, contribution: Contribution) -> tuple[float, list[Tensor]] | None:
        """Return the weight of a contribution and its values by bucket.

        `None` where they do not decode or are not finite. Every rank reads the same bytes, so it is
        `None` for all of them.

        Raises:
            Gone: it has been cleared away.
            FlightError: the codec fails otherwise.
        """
        entry = self._get(contribution)
        if entry is None:
            return None
        weight, payloads = entry
        coder, ctx = (
            self._codec.single_packet_coder,
            self._context(contribution.rank, contribution.began),
        )
        assert coder is not None, "refused before"
        # Payloads lie in the order of buckets and their slices, as the sender encoded them.
        remaining, values = iter(payloads), []
        try:
            for bucket in self._buckets:
                specs = [part.spec for part in bucket.slices]
                values.append(
                    torch.cat(
                        [
                            coder.decode(
                                next(remaining),
                                spec,
                                coder.init(spec, ctx),
                                ctx,
                                contribution.rank,
                            )
                            for spec in specs
                        ]
                    )
                )
                # One value that is not finite would spoil the anchor of every rank.
                if not bool(fast.all_finite(values[-1])):
                    raise PayloadError("its values are not finite")
        except PayloadError as error:
            self._pass_over(contribution, error)
            return None
        # Another error is no fault of the bytes, so it may not be the same on every rank: end the
        # run.
        except (RuntimeError, ValueError, IndexError) as error:
            raise FlightError(
                f"rank {contribution.rank}'s contribution of round {contribution.began} cannot be "
                "decoded "
                f"({error})"
            ) from error
        return weight, values

    def forget(self, contributions: Sequence[Contribution]) -> None:
        """Drop contributions that have been applied."""
        for contribution in contributions:
            self._read.pop(contribution, None)

    def _is_there(self, contribution: Contribution) -> bool:
        try:
            return self._get(contribution) is not None
        except Gone:  # not kept as unusable: who closes the round may have seen the bytes
            if contribution not in self._absent:
                self._absent.add(contribution)
                _warn(contribution, "its bytes are not there")
            return False

    def _get(self, contribution: Contribution) -> tuple[float, list[Tensor]] | None:
        if contribution not in self._read:
            try:
                # Anybody may have written the bytes: hold the head against the entry, and the
                # payloads against the model, before a codec sees them.
                head, payloads = unpack(self._store.payload_of(contribution))
                weight = read_weight(head, contribution, self._store.bounds)
                if len(payloads) != sum(len(bucket.slices) for bucket in self._buckets):
                    raise PayloadError(f"{len(payloads)} payloads are of another number of slices")
                if any(payload.dtype != torch.uint8 or payload.dim() != 1 for payload in payloads):
                    raise PayloadError("its payloads are not bytes")
                self._read[contribution] = weight, payloads
            except PayloadError as error:
                self._pass_over(contribution, error)
        return self._read[contribution]

    def _pass_over(self, contribution: Contribution, error: PayloadError) -> None:
        self._read[contribution] = None
        _warn(contribution, str(error))


def _warn(contribution: Contribution, why: str) -> None:
    warnings.warn(
        (
            f"what the store holds as rank {contribution.rank}'s contribution of round "
            f"{contribution.began} "
            f"does not count: {why}"
        ),
        stacklevel=6,
    )
