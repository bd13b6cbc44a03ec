"""Encode matrices, embeddings and vectors of one bucket each by their own codec.

The bucket is split by role, every role's codec runs its rounds in step with the others, and their
packets travel as one composite: the payloads one behind the other (the widest numbers first, so
that each stays aligned), before them 8 bytes of length for each whose size the data decides.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import ClassVar

import torch
from torch import Tensor

from thinwire.core import (
    Codec,
    Coder,
    Extent,
    Outcome,
    Packet,
    RankContext,
    Role,
    Rounds,
    Spec,
    State,
    Traits,
    encode_packet,
    side_by_side,
)
from thinwire.errors import PayloadError
from thinwire.what.scalar.identity import identity
from thinwire.what.wrap._wrap import KeepsResidual

_LENGTH = 8


@dataclass(frozen=True)
class by_role(Codec, KeepsResidual):
    """`matrix`, `embedding` and `vector` parts each through their own codec.

    Args:
        matrix: for parameters of two or more dimensions.
        embedding: for weights of embeddings (tied ones too).
        vector: for biases, norms and scalars.

    Example:
        >>> from thinwire.what import cast, lowrank
        >>> by_role(matrix=lowrank(4), embedding=cast("bf16")).traits.summable
        True
    """

    examples: ClassVar[tuple[str, ...]] = (
        "by_role(matrix=lowrank(2), embedding=cast())",
        "by_role(matrix=feedback(topk(0.1)), embedding=threshold(1.0), "
        "vector=feedback(uniform(2)))",
        "by_role(matrix=feedback(lowrank(2)), vector=randomk(0.5))",
    )

    matrix: Codec = field(default_factory=identity)
    embedding: Codec = field(default_factory=identity)
    vector: Codec = field(default_factory=identity)

    @property
    def _codecs(self) -> dict[Role, Codec]:
        return {"matrix": self.matrix, "embedding": self.embedding, "vector": self.vector}

    @cached_property
    def traits(self) -> Traits:
        each = [codec.traits for codec in self._codecs.values()]
        grains = {traits.grain for traits in each}
        return Traits(
            grain="bucket" if "bucket" in grains else "part" if "part" in grains else 1,
            lossy=any(traits.lossy for traits in each),
            summable=all(traits.summable for traits in each),
            drops=any(traits.drops for traits in each),
            randomised=any(traits.randomised for traits in each),
            unbiased=all(traits.unbiased for traits in each),
            cuts=max(traits.cuts for traits in each),
        )

    def init(self, spec: Spec, ctx: RankContext) -> State:
        return State(
            children={
                role: self._codecs[role].init(sub, ctx.child(role))
                for role, sub, _ in self._split(spec)
            }
        )

    def nbytes(self, spec: Spec) -> int | None:
        sizes = [self._codecs[role].nbytes(sub) for role, sub, _ in self._split(spec)]
        return None if None in sizes else sum(size or 0 for size in sizes)

    def max_nbytes(self, spec: Spec) -> int:
        return sum(
            _LENGTH + self._codecs[role].max_nbytes(sub) for role, sub, _ in self._split(spec)
        )

    def rounds(self, x: Tensor, spec: Spec, state: State, ctx: RankContext) -> Rounds:
        # 1. Begin a flow for each role, on its own values laid side by side.
        split = list(self._split(spec))
        flows: list[Rounds] = []
        for role, sub, extents in split:
            part = torch.cat([x[p.at : p.at + p.high - p.low] for p in extents])
            flows.append(self._codecs[role].rounds(part, sub, state.child(role), ctx.child(role)))

        def answer(packets: dict[int, Packet]) -> Generator[Packet, Tensor, dict[int, Tensor]]:
            # The widest numbers first, so that each payload stays aligned for its dtype.
            order = sorted(
                packets,
                key=lambda i: -max((dtype.itemsize for _, dtype in packets[i].sums), default=0),
            )
            total = yield _compose([packets[i] for i in order], ctx, x.device)
            return dict(
                zip(order, total.split([packets[i].spec.numel for i in order]), strict=True)
            )

        # 2. Step all flows together: one packet of this codec holds one of each.
        outcomes = yield from side_by_side(flows, answer)
        if not split:
            total = yield _compose([], ctx, x.device)
            return Outcome(total, lambda: x)

        # 3. Put each role's values back where they lie in the span.
        def spread(parts: list[Tensor]) -> Tensor:
            out = torch.empty(spec.numel, dtype=spec.work, device=x.device)
            for (_, _, extents), part in zip(split, parts, strict=True):
                at = 0
                for p in extents:
                    out[p.at : p.at + p.high - p.low] = part[at : at + p.high - p.low]
                    at += p.high - p.low
            return out

        def sent(i: int) -> Tensor:
            _, _, extents = split[i]
            own = outcomes[i].sent
            return (
                own()
                if own is not None
                else torch.cat([x[p.at : p.at + p.high - p.low] for p in extents]).to(spec.dtype)
            )

        ways = range(len(split))
        return Outcome(
            spread([outcomes[i].total for i in ways]), lambda: spread([sent(i) for i in ways])
        )

    def _split(self, spec: Spec) -> Iterator[tuple[Role, Spec, list[Extent]]]:
        """Yield, for each role that occurs, the span of its parts laid side by side, and where its
        extents lie in the whole."""
        # Fields of this codec in order: every rank composes and splits packets alike.
        for role in (f.name for f in fields(self)):
            extents = [extent for extent in spec.extents() if extent.part.role == role]
            if extents:
                parts, at = [], 0
                for extent in extents:
                    parts.append(replace(extent.part, begin=at))
                    at += extent.part.numel
                numel = sum(extent.high - extent.low for extent in extents)
                yield (
                    extents[0].part.role,
                    Spec(tuple(parts), extents[0].low, numel, spec.dtype),
                    extents,
                )

    def error_bound(self, x: Tensor, spec: Spec, ctx: RankContext) -> Tensor:
        error = torch.zeros(spec.numel, dtype=torch.float64)
        for role, sub, at in self._indices(spec):
            error[at] = self._codecs[role].error_bound(x[at], sub, ctx.child(role))
        return error

    def values_kept(self, x: Tensor, spec: Spec, state: State, ctx: RankContext) -> Tensor:
        # What a role keeps in its own way comes from its codec; other roles keep all of x.
        x = x.to(spec.work).clone()
        for role, sub, at in self._indices(spec):
            codec = self._codecs[role]
            if isinstance(codec, KeepsResidual):
                x[at] = codec.values_kept(x[at], sub, state.child(role), ctx)
        return x

    def residual_of(self, spec: Spec, state: State, ctx: RankContext, *, faded: bool) -> Tensor:
        out = torch.full((spec.numel,), float("nan"), dtype=spec.work)
        for role, sub, at in self._indices(spec):
            codec = self._codecs[role]
            if isinstance(codec, KeepsResidual):
                out[at] = codec.residual_of(sub, state.child(role), ctx, faded=faded)
        return out

    def rounded_off(self, residual: Tensor) -> Tensor:
        keeping = [codec for codec in self._codecs.values() if isinstance(codec, KeepsResidual)]
        return sum(
            (codec.rounded_off(residual) for codec in keeping), super().rounded_off(residual)
        )

    def _indices(self, spec: Spec) -> Iterator[tuple[Role, Spec, Tensor]]:
        """Yield each role that occurs, its span, and the indices of its values in the whole."""
        for role, sub, extents in self._split(spec):
            yield role, sub, torch.cat([torch.arange(p.at, p.at + p.high - p.low) for p in extents])


@dataclass(frozen=True)
class _Composite(Coder):
    """Several packets as one; it lives for one round and is never configured."""

    coders: tuple[Coder, ...]
    specs: tuple[Spec, ...]
    contexts: tuple[RankContext, ...]
    # of the flight whose packets these are; a sum that is encoded again comes under another
    key: str

    def nbytes(self, spec: Spec) -> int | None:
        sizes = [coder.nbytes(sub) for coder, sub in zip(self.coders, self.specs, strict=True)]
        return None if None in sizes else sum(size or 0 for size in sizes)

    def max_nbytes(self, spec: Spec) -> int:
        return _LENGTH * sum(self._loose()) + sum(
            coder.max_nbytes(sub) for coder, sub in zip(self.coders, self.specs, strict=True)
        )

    def encode(self, x: Tensor, spec: Spec, state: State, ctx: RankContext) -> Tensor:
        # Each part by its own coder, state and context, as if it went alone.
        runs = x.split([sub.numel for sub in self.specs])
        states = [state.child(str(i)) for i in range(len(runs))]
        contexts = self._contexts(ctx)
        return self.join(
            [
                c.encode(r, s, t, u)
                for c, r, s, t, u in zip(
                    self.coders, runs, self.specs, states, contexts, strict=True
                )
            ]
        )

    def _contexts(self, ctx: RankContext) -> tuple[RankContext, ...]:
        """Return the contexts of sender and receiver alike: shared random numbers (a rotation's
        signs) must agree."""
        # Sent again by a route, the composite has another key; each part's key then follows that.
        if ctx.key == self.key:
            return self.contexts
        return tuple(
            RankContext(own.rank, own.group, own.step, own.seed, ctx.key + own.key)
            for own in self.contexts
        )

    def join(self, payloads: list[Tensor]) -> Tensor:
        sized = [payload for payload, loose in zip(payloads, self._loose(), strict=True) if loose]
        lengths = torch.tensor([payload.numel() for payload in sized], dtype=torch.int64).view(
            torch.uint8
        )
        return torch.cat([lengths.to(payloads[0].device), *payloads])

    def decode(
        self, payload: Tensor, spec: Spec, state: State, ctx: RankContext, sender: int
    ) -> Tensor:
        # 1. Sizes: lengths from the head where the data decides, else what each codec computes.
        loose = self._loose()
        head = _LENGTH * sum(loose)
        if payload.numel() < head:
            raise PayloadError(
                f"by_role: {payload.numel()} bytes are too few for {sum(loose)} lengths; the "
                "payload was cut"
            )
        lengths = iter(payload[:head].cpu().clone().view(torch.int64).tolist())
        sizes = [
            next(lengths) if free else coder.nbytes(sub) or 0
            for free, coder, sub in zip(loose, self.coders, self.specs, strict=True)
        ]
        if min(sizes, default=0) < 0 or head + sum(sizes) != payload.numel():
            raise PayloadError(
                f"by_role: parts of {sizes} bytes in a payload of {payload.numel()}; it was cut "
                "or corrupted"
            )
        # 2. Cut the payload in its parts; negative or excess lengths are refused before that.
        runs = payload[head:].split(sizes)
        return torch.cat(
            [
                coder.decode(run, sub, state.child(str(i)), own, sender)
                for i, (coder, run, sub, own) in enumerate(
                    zip(self.coders, runs, self.specs, self._contexts(ctx), strict=True)
                )
            ]
        )

    def _loose(self) -> list[bool]:
        return [
            coder.nbytes(sub) is None for coder, sub in zip(self.coders, self.specs, strict=True)
        ]


def _compose(packets: list[Packet], ctx: RankContext, device: torch.device) -> Packet:
    """Compose one packet of several; return a single one as it is."""
    # A single packet needs no frame; where there is none, each rank still sends an empty one.
    if len(packets) == 1:
        return packets[0]
    if not packets:
        nothing = Spec((), 0, 0, torch.float32)
        return encode_packet(identity(), torch.empty(0, device=device), nothing, State(), ctx)
    # States and contexts stay each packet's own: a part decodes as it would alone.
    composite = _Composite(
        tuple(p.coder for p in packets),
        tuple(p.spec for p in packets),
        tuple(p.ctx for p in packets),
        ctx.key,
    )
    spec = Spec((), 0, sum(p.spec.numel for p in packets), packets[0].spec.work)
    state = State(children={str(i): p.state for i, p in enumerate(packets)})
    payload = composite.join([p.payload for p in packets])
    # The composite may be added in place only if every part that has bytes may.
    sums = (
        tuple(run for p in packets for run in p.sums)
        if all(p.sums or not p.payload.numel() for p in packets)
        else ()
    )
    return Packet(payload, spec, composite, state, ctx, sums)
