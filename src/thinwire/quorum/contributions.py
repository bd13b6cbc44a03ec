"""Contributions to rounds with a quorum: read once, held against the model, and decoded."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from thinwire.core import Codec, RankContext
from thinwire.engine.buckets import FlatBucket
from thinwire.errors import FlightError, PayloadError
from thinwire.kernels import fast
from thinwire.quorum.entries import Offer, read_weight, unpack
from thinwire.quorum.rendezvous_store import Board, Gone


class Contributions:
    """The contributions that one rank has read.

    Args:
        board: where they are.
        codec: what they are encoded with.
        buckets: what they are deltas of.
        ctx: of a rank and the round that it began with.
    """

    def __init__(
        self,
        board: Board,
        codec: Codec,
        buckets: Sequence[FlatBucket],
        ctx: Callable[[int, int], RankContext],
    ) -> None:
        self._board, self._codec, self._buckets, self._context = board, codec, buckets, ctx
        self._read: dict[
            Offer, tuple[float, list[Tensor]] | None
        ] = {}  # weight and payloads; `None`: no rank can have made it
        self._absent: set[Offer] = set()

    def usable(self, round_: int) -> list[Offer]:
        """Return the offers to a round that can count: their bytes are there, and a rank can have
        made them."""
        return [offer for offer in self._board.came(round_) if self._is_there(offer)]

    def values(self, offer: Offer) -> tuple[float, list[Tensor]] | None:
        """Return the weight of a contribution and its values by bucket.

        `None` where they do not decode or are not finite. Every rank reads the same bytes, so it is
        `None` for all of them.

        Raises:
            Gone: it has been cleared away.
            FlightError: the codec fails otherwise.
        """
        found = self._get(offer)
        if found is None:
            return None
        weight, payloads = found
        opener, ctx = self._codec.single_packet_coder, self._context(offer.rank, offer.began)
        assert opener is not None, "refused before"
        left, values = iter(payloads), []
        try:
            for bucket in self._buckets:
                specs = [part.spec for part in bucket.slices]
                values.append(
                    torch.cat(
                        [
                            opener.decode(next(left), spec, opener.init(spec, ctx), ctx, offer.rank)
                            for spec in specs
                        ]
                    )
                )
                if not bool(fast.all_finite(values[-1])):
                    raise PayloadError("its values are not finite")
        except PayloadError as error:
            self._pass_over(offer, error)
            return None
        except (RuntimeError, ValueError, IndexError) as error:
            raise FlightError(
                f"rank {offer.rank}'s contribution of round {offer.began} cannot be decoded "
                f"({error})"
            ) from error
        return weight, values

    def forget(self, offers: Sequence[Offer]) -> None:
        """Let go of what has been applied."""
        for offer in offers:
            self._read.pop(offer, None)

    def _is_there(self, offer: Offer) -> bool:
        try:
            return self._get(offer) is not None
        except Gone:  # not kept as unusable: who closes the round may have seen the bytes
            if offer not in self._absent:
                self._absent.add(offer)
                _warn(offer, "its bytes are not there")
            return False

    def _get(self, offer: Offer) -> tuple[float, list[Tensor]] | None:
        if offer not in self._read:
            try:
                head, payloads = unpack(self._board.contribution(offer))
                weight = read_weight(head, offer, self._board.bounds)
                if len(payloads) != sum(len(bucket.slices) for bucket in self._buckets):
                    raise PayloadError(f"{len(payloads)} payloads are of another number of slices")
                if any(payload.dtype != torch.uint8 or payload.dim() != 1 for payload in payloads):
                    raise PayloadError("its payloads are not bytes")
                self._read[offer] = weight, payloads
            except PayloadError as error:
                self._pass_over(offer, error)
        return self._read[offer]

    def _pass_over(self, offer: Offer, error: PayloadError) -> None:
        self._read[offer] = None
        _warn(offer, str(error))


def _warn(offer: Offer, why: str) -> None:
    warnings.warn(
        (
            f"what the store holds as rank {offer.rank}'s contribution of round {offer.began} "
            f"does not count: {why}"
        ),
        stacklevel=6,
    )
