"""Encode each rank's values by its own codec, so that one behind a thin wire sends fewer bits.

Rank r encodes with the r-th codec, and every receiver decodes with that one; a sum that is encoded
again takes the codec of the rank that encodes it. The list is part of the strategy, which `attach`
proves to be the same on all ranks, so nothing more travels than lengths.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Self

from torch import Tensor

from thinwire.core import Coder, Grain, RankContext, Spec, State, Traits
from thinwire.core.component import inside
from thinwire.errors import StrategyError


@dataclass(frozen=True)
class by_rank(Coder):
    """Encode rank r's values by the r-th codec: its bytes, and 8 a message for a length if they
    differ.

    Args:
        codecs: one for each rank of the world, in order; each sends one packet and keeps no state.
            Feedback goes around the whole, `feedback(by_rank((uniform(8), uniform(2))))`.

    Raises:
        StrategyError: no codecs, or one that remembers, talks in several rounds or is by rank
            itself. At attach: more ranks than codecs.

    Payloads differ in size, so they cannot be added unopened: use `gather()`, `two_shot()` or
    `server(…)`.

    Example:
        >>> import torch
        >>> from thinwire.what import uniform
        >>> codec, spec = by_rank((uniform(8), uniform(2))), Spec((), 0, 256, torch.float32)
        >>> contexts = [RankContext(rank, (0, 1), step=0, seed=0) for rank in (0, 1)]
        >>> x = torch.linspace(-1, 1, 256)
        >>> payloads = [codec.encode(x, spec, codec.init(spec, ctx), ctx) for ctx in contexts]
        >>> [payload.numel() for payload in payloads]
        [260, 68]
        >>> ctx, arrived = contexts[0], []
        >>> for sender, payload in enumerate(payloads):
        ...     arrived.append(codec.decode(payload, spec, codec.init(spec, ctx), ctx, sender))
        >>> [float((each - x).abs().max()) < bound for each, bound in zip(arrived, (0.005, 0.6))]
        [True, True]
    """

    examples: ClassVar[tuple[str, ...]] = (
        "by_rank((topk(5, per=64), topk(0.2), uniform(2), fp8(), identity(), topk(5, "
        "per=64) >> uniform(4), uniform(3), cast(), cast()))",
        "by_rank((uniform(2), uniform(4), identity(), uniform(2, block=64), cast(), "
        "uniform(3), uniform(4), uniform(2), cast(), cast()))",
    )

    codecs: tuple[Coder, ...]

    def __new__(cls, *args: Any, **settings: Any) -> Self:  # noqa: ARG004  (its own checks say more than a type's name)
        return object.__new__(cls)

    def __post_init__(self) -> None:
        reasons = (
            []
            if self.codecs
            else [
                "by_rank(()): name a codec for each rank, such as by_rank((uniform(8), uniform(4)))"
            ]
        )
        for codec in self.codecs:
            if not isinstance(codec, Coder) or codec.single_packet_coder is not codec:
                reasons.append(
                    f"by_rank(…, {codec!r}, …): a codec must send one packet and keep no state. "
                    "Put "
                    "feedback around by_rank(…)"
                )
            elif any(isinstance(component, by_rank) for component in inside(codec)):
                reasons.append(f"by_rank(…, {codec!r}, …): it is by rank already")
        if reasons:
            raise StrategyError(reasons)

    def of(self, rank: int) -> Coder:
        """Return the codec of a rank.

        Raises:
            StrategyError: it has none.
        """
        if rank >= len(self.codecs):
            last = len(self.codecs) - 1
            raise StrategyError(
                f"{self!r}: it names codecs for ranks 0 to {last}, and there is a rank {rank}. "
                "Name one for each"
            )
        return self.codecs[rank]

    @cached_property
    def traits(self) -> Traits:
        each = [codec.traits for codec in self.codecs]
        grains = {traits.grain for traits in each}
        words: tuple[Grain, ...] = ("bucket", "part")
        coarse = next((word for word in words if word in grains), None)
        return Traits(
            grain=coarse or math.lcm(*(grain for grain in grains if isinstance(grain, int))),
            lossy=any(traits.lossy for traits in each),
            drops=any(traits.drops for traits in each),
            randomised=any(traits.randomised for traits in each),
            cuts=max(traits.cuts for traits in each),
        )

    def init(self, spec: Spec, ctx: RankContext) -> State:
        self.of(max(ctx.group))
        return self.of(ctx.rank).init(spec, ctx)

    def nbytes(self, spec: Spec) -> int | None:
        sizes = {codec.nbytes(spec) for codec in self.codecs}
        return sizes.pop() if len(sizes) == 1 else None

    def max_nbytes(self, spec: Spec) -> int:
        return max(codec.max_nbytes(spec) for codec in self.codecs)

    def encode(self, x: Tensor, spec: Spec, state: State, ctx: RankContext) -> Tensor:
        codec = self.of(ctx.rank)
        payload = codec.encode(x, spec, state, ctx)
        return (
            payload if codec.traits.lossy else payload.clone()
        )  # it may be x itself, where a route writes the sum

    def decode(
        self, payload: Tensor, spec: Spec, state: State, ctx: RankContext, sender: int
    ) -> Tensor:
        codec = self.of(sender)
        opened = codec.decode(payload, spec, self._state_of(sender, spec, state, ctx), ctx, sender)
        return (
            opened if codec.traits.lossy else opened.clone()
        )  # it may lie in the payload, which is opened again to tell what was sent

    def accumulate(
        self,
        total: Tensor,
        payload: Tensor,
        spec: Spec,
        state: State,
        ctx: RankContext,
        sender: int,
    ) -> None:
        self.of(sender).accumulate(
            total, payload, spec, self._state_of(sender, spec, state, ctx), ctx, sender
        )

    def _state_of(self, sender: int, spec: Spec, state: State, ctx: RankContext) -> State:
        """Return this rank's own state, or what another's codec begins with: what decodes remembers
        nothing."""
        return state if sender == ctx.rank else self.of(sender).init(spec, ctx)

    def error_bound(self, x: Tensor, spec: Spec, ctx: RankContext) -> Tensor:
        return self.of(ctx.rank).error_bound(x, spec, ctx)
