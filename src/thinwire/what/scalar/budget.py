"""Spend a budget of bits where they reduce the squared error most, piece by piece of the
parameters.

The quantiser is `uniform` on the grid with a zero: a step a block, Δ = max|v| / L, L the largest
level of b bits. A piece is a run of `per` values of one parameter. Steps, on each rank by itself:
    1. E_p(b) = sum |Q_b(v) - v|² over piece p, measured for each of the `choices` b (stochastic:
       its mean over draws).
    2. minimise sum E_p(b_p) within the bytes of the budget: along the convex hull of each piece's
       points (bytes, error), the move of the largest saving a byte first, until nothing fits
       (`_allocate.py`).
    3. The payload: 4 bits of b_p a piece, a step for each block that is sent, the codes of the
       pieces of the least width, then of the next, and zeros for what nobody could use.
Since widths travel, ranks need not agree on them, and a sum that is encoded again has widths of its
own.

Source: bit allocation by Lagrange multipliers (Shoham & Gersho 1988, "Efficient bit allocation for
an arbitrary set of quantizers"); for gradients a layer, L-GreCo (Markov et al. 2022,
arXiv:2210.17357); for weights, HAWQ-V2 (Dong et al. 2019, arXiv:1911.03852). Differs from L-GreCo:
the bytes are given and the error is made least, not the other way round; each rank and sum has its
own widths; hulls in place of dynamic programming; and pieces may be far smaller than a layer.
"""

from __future__ import annotations

import math
import zlib
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import torch
from torch import Tensor

from thinwire.core import Coder, Leaf, RankContext, Spec, State, Traits, check_nbytes
from thinwire.errors import PayloadError, StrategyError
from thinwire.kernels import reference
from thinwire.what.scalar._allocate import allocate
from thinwire.what.scalar._blocks import Layout, in_rows, layout_of, sizes_of
from thinwire.what.scalar._levels import wrong_rounding
from thinwire.what.scalar.uniform import uniform

_WIDTHS = (0, 2, 3, 4, 5, 6, 7, 8)  # 4 bits name one of them
_AT_ONCE = 2**18  # values measured at a time on a CPU, so that they stay in its cache


@dataclass(frozen=True)
class budget(Coder):
    """`bits` a value in the mean, each piece in its own width: bytes as of `uniform(bits, block)`,
    and 4 bits a piece.

    Args:
        bits: the mean of the widths, as of `uniform`: steps are not counted. Between the least and
            the largest of the choices.
        choices: the widths to choose from, ascending, of 0 and 2 to 8. 0 leaves a piece out, whose
            step then pays for others: far less error below 4 bits; it needs `feedback` and, over
            `two_shot`, a codec for the way back.
        per: values that share a width, a multiple of `block`; 0 for one width a parameter (or what
            of it lies in the span).
        block: values that share a step.
        rounding: "nearest", or "stochastic" (unbiased unless 0 is among the choices; larger error;
            drawn by (seed, step, key, rank)).
        every: widths are chosen anew at the first flight of each `every` steps of training, and
            kept in between: a byte a piece of state.

    Raises:
        StrategyError: an argument outside the above, or a budget below the least width.

    A block that holds a NaN or an infinity decodes to NaN throughout; where such blocks do not all
    fit in the budget, all that is sent does. Where 0 is a choice, no budget is below what lets the
    largest piece be sent at all.

    Example:
        >>> from thinwire.core import Part
        >>> matrices = Part("w", (64, 64), 0, "matrix"), Part("v", (64, 64), 4096, "matrix")
        >>> spec = Spec((*matrices, Part("b", (9,), 8192, "vector")), 0, 8201, torch.float32)
        >>> budget(4.0).nbytes(spec)  # 33 pieces: 17 bytes of widths, 132 of steps, 4101 of codes
        4250
        >>> x = torch.arange(8201).sin()
        >>> x[4096:] *= 0.1
        >>> budget(4.0, per=0).chosen(x, spec)
        {'w': 5.0, 'v': 3.0, 'b': 4.0}
    """

    examples: ClassVar[tuple[str, ...]] = (
        "budget(3.0, (0, 2, 4, 8), per=32, block=16)",
        "feedback(budget(1.5, (0, 2, 3, 4, 8), per=60, block=30))",
        "budget(5.2, per=0, block=64)",
        'budget(4.0, rounding="stochastic", per=32, block=32)',
        "feedback(budget(3.0, per=64, block=64, every=3))",
        'budget(2.5, (0, 2, 5), per=8, block=8, rounding="stochastic", every=2)',
        "budget()",
    )

    bits: float = 4.0
    choices: tuple[int, ...] = (2, 3, 4, 5, 6, 7, 8)
    per: int = 256
    block: int = 256
    rounding: reference.Rounding = "nearest"
    every: int = 1

    def __post_init__(self) -> None:
        reasons = [*wrong_rounding("budget", self.rounding)]
        requested = f"budget(bits={self.bits}, choices={self.choices})"
        if (
            not self.choices
            or list(self.choices) != sorted(set(self.choices))
            or not set(self.choices) <= set(_WIDTHS)
        ):
            reasons.append(
                f"budget(choices={self.choices}): choose of 0 and 2 to 8, ascending; 1 bit has no "
                "level for zero"
            )
        elif self.choices == (0,):
            reasons.append(
                "budget(choices=(0,)): nothing would ever be sent; add widths, such as (0, 2, 3, "
                "4, 5, 6, 7, 8)"
            )
        elif not (self.choices[0] <= self.bits <= self.choices[-1] and self.bits > 0):
            least = (
                "more than 0"
                if self.choices[0] == 0
                else f"at least {self.choices[0]}, the least width of every piece"
            )
            reasons.append(
                f"{requested}: the mean width is {least}, and at most {self.choices[-1]}; change "
                "bits "
                "or choices"
            )
        if self.block < 1:
            reasons.append(f"budget(block={self.block}): a block has at least 1 value")
        elif self.per < 0 or self.per % self.block:
            reasons.append(
                f"budget(per={self.per}, block={self.block}): a piece is whole blocks, or 0 for a "
                "whole parameter"
            )
        if self.every < 1:
            reasons.append(f"budget(every={self.every}): a count of steps is at least 1")
        if reasons:
            raise StrategyError(reasons)

    @cached_property
    def traits(self) -> Traits:
        random, drops = self.rounding == "stochastic", self.choices[0] == 0
        return Traits(
            grain=self.block, drops=drops, randomised=random, unbiased=random and not drops
        )

    def init(self, spec: Spec, ctx: RankContext) -> State:
        if self.every == 1:
            return State()
        none = torch.zeros(len(self._layout(spec).sizes), dtype=torch.uint8, device="cpu")
        never = torch.tensor(-1, device="cpu")
        return State(
            {
                name: Leaf(first, "private", part=spec.key)
                for name, first in (("widths", none), ("chosen", never), ("of", never))
            }
        )

    def nbytes(self, spec: Spec) -> int:
        return reference.packed_nbytes(len(self._layout(spec).sizes), 4) + self._room(spec)

    def encode(self, x: Tensor, spec: Spec, state: State, ctx: RankContext) -> Tensor:
        layout = self._layout(spec)
        if not spec.numel:
            return torch.empty(0, dtype=torch.uint8, device=x.device)
        x, random_bits = x.to(spec.work), None
        real = layout.real(x.device)
        rows = in_rows(x, layout, real)
        if self.rounding == "stochastic":
            random_bits = in_rows(ctx.random_bits(spec).to(x.device), layout, real)

        # 1. and 2. Choose each piece's width.
        widths = self._widths(rows, spec, state, ctx)

        # 3. Steps and codes, the pieces of the least width first.
        steps, codes = x.new_empty(len(rows)), []
        for bits, own in layout.groups(widths, x.device):
            steps[own] = reference.block_steps(rows[own], bits, "tread")
            group = reference.quantise(
                rows[own],
                steps[own, None],
                bits,
                "tread",
                None if random_bits is None else random_bits[own],
            )
            codes.append(reference.pack(group.view(-1) if real is None else group[real[own]], bits))
        is_sent = (widths > 0)[layout.owner].to(x.device)
        # There is no room for all that is lost: then nothing passes for sound.
        if not bool(rows[~is_sent].isfinite().all()):
            steps.fill_(float("nan"))
        payload = torch.cat(
            [reference.pack(widths.to(x.device), 4), reference.as_bytes(steps[is_sent]), *codes]
        )
        return torch.cat([payload, payload.new_zeros(self.nbytes(spec) - payload.numel())])

    def decode(
        self, payload: Tensor, spec: Spec, state: State, ctx: RankContext, sender: int
    ) -> Tensor:
        check_nbytes(self, payload, self.nbytes(spec))
        layout = self._layout(spec)
        if not spec.numel:
            return torch.empty(0, dtype=spec.work, device=payload.device)

        # 1. Widths, then a step for each block that was sent.
        widths = self._read(payload, spec)
        is_sent = (widths > 0)[layout.owner]
        at = reference.packed_nbytes(len(widths), 4)
        head = at + int(is_sent.sum()) * spec.work.itemsize
        steps = torch.zeros(len(is_sent), dtype=spec.work, device=payload.device)
        steps[is_sent.to(payload.device)] = reference.from_bytes(payload[at:head], spec.work)

        # 2. Codes, the pieces of the least width first; the tail of a parameter fills no block.
        out = torch.zeros(len(is_sent), self.block, dtype=spec.work, device=payload.device)
        real = layout.real(payload.device)
        for bits, own in layout.groups(widths, payload.device):
            count = int(layout.sizes[widths == bits].sum())
            nbytes = reference.packed_nbytes(count, bits)
            codes, head = (
                reference.unpack(payload[head : head + nbytes], count, bits),
                head + nbytes,
            )
            if real is not None:
                codes = codes.new_zeros(len(own), self.block).masked_scatter_(real[own], codes)
            out[own] = reference.dequantise(
                codes.view(-1, self.block), steps[own, None], bits, "tread"
            )
        return out.view(-1)[: spec.numel] if real is None else out[real]

    def chosen(self, x: Tensor, spec: Spec) -> dict[str, float]:
        """Return the mean width of each parameter (or of what lies in the span) that x
        (spec.numel,) gets."""
        layout, x = self._layout(spec), x.to(spec.work)
        widths = self._chosen(in_rows(x, layout, layout.real(x.device)), spec)
        results, at = {}, 0
        for extent in spec.extents():
            until = at + len(sizes_of(extent.high - extent.low, self.per))
            sizes = layout.sizes[at:until]
            results[extent.part.name], at = (
                float((widths[at:until] * sizes).sum() / sizes.sum()),
                until,
            )
        return results

    def _widths(self, rows: Tensor, spec: Spec, state: State, ctx: RankContext) -> Tensor:
        """Return the widths of a flight: chosen now, or kept from the last time: (P,) uint8 on the
        CPU."""
        if self.every == 1:
            return self._chosen(rows, spec)
        saved_widths, at, of = (
            state["widths"].value,
            int(state["chosen"].value),
            int(state["of"].value),
        )
        # A route that encodes a sum again has another key: it chooses widths of its own.
        mine = zlib.crc32(repr(ctx.key).encode())
        # Reuse the saved widths within a period of `every` steps, if they still fit the values.
        if (
            of == mine
            and at // self.every == ctx.step // self.every
            and self._serves(saved_widths, rows, spec)
        ):
            return saved_widths
        widths = self._chosen(rows, spec)
        if of in (mine, -1):
            state["widths"].value, state["of"].value = widths, torch.tensor(mine, device="cpu")
            state["chosen"].value = torch.tensor(ctx.step, device="cpu")
        return widths

    def _serves(self, widths: Tensor, rows: Tensor, spec: Spec) -> bool:
        """Return whether saved widths are of as many pieces (a core's length may move) and leave
        out nothing that is not finite."""
        layout = self._layout(spec)
        if len(widths) != len(layout.sizes):
            return False
        left_out = (widths == 0)[layout.owner]
        return not left_out.any() or bool(rows[left_out.to(rows.device)].isfinite().all())

    def _chosen(self, rows: Tensor, spec: Spec) -> Tensor:
        """Return the widths of least error for these values: (m, block) -> (P,) uint8 on the
        CPU."""
        # 1. The squared error of each piece in each width, from those of its blocks.
        layout, costs = self._layout(spec), self._costs(spec)
        errors = torch.zeros(
            len(layout.sizes), len(self.choices), dtype=torch.float64, device="cpu"
        )
        errors.index_add_(
            0, layout.owner, _row_errors(rows, self.choices, self.rounding == "stochastic").cpu()
        )
        # 2. Allocate, but never worse than one width for all, the largest within `bits`.
        room = self._room(spec)
        picked = allocate(errors, costs, room)
        alike = max(i for i, bits in enumerate(self.choices) if bits <= self.bits)
        alone = torch.full_like(picked, alike)
        if _total(errors, alone) < _total(errors, picked):  # the hulls' gap, on a few odd pieces
            picked = alone
        return torch.tensor(self.choices, dtype=torch.uint8, device="cpu")[picked]

    def _read(self, payload: Tensor, spec: Spec) -> Tensor:
        """Return the widths that a payload names: (P,) uint8 on the CPU."""
        # The payload decides how much is read next: refuse other widths, and more than the room.
        costs = self._costs(spec)
        widths = reference.unpack(
            payload[: reference.packed_nbytes(len(costs), 4)], len(costs), 4
        ).cpu()
        option = torch.full((16,), -1, dtype=torch.int64, device="cpu")
        option[torch.tensor(self.choices, device="cpu")] = torch.arange(
            len(self.choices), device="cpu"
        )
        picked = option[widths.to(torch.int64)]
        if int(picked.min()) < 0:
            raise PayloadError(
                f"{self!r}: a payload names a width of {int(widths[picked.argmin()])} bits; it is "
                "corrupted"
            )
        spent = int(costs.gather(1, picked[:, None]).sum())
        if spent > self._room(spec):
            raise PayloadError(
                f"{self!r}: a payload whose widths come to {spent} bytes of {self._room(spec)}; "
                "it is corrupted"
            )
        return widths

    def _layout(self, spec: Spec) -> Layout:
        return layout_of(spec, self.per, self.block)

    def _costs(self, spec: Spec) -> Tensor:
        """Return the bytes of each piece in each width, steps included: (P, O) int64."""
        layout, widths = self._layout(spec), torch.tensor(self.choices, device="cpu")
        codes = (layout.sizes[:, None] * widths + 7) // 8
        return codes + (layout.rows * spec.work.itemsize)[:, None] * (widths > 0)

    def _room(self, spec: Spec) -> int:
        """Return the bytes for steps and codes: as if all pieces had the largest width within
        `bits`, and what `bits` is above it."""
        if not spec.numel:
            return 0
        layout, costs = self._layout(spec), self._costs(spec)
        alike = max(bits for bits in self.choices if bits <= self.bits)
        codes = int(((layout.sizes * alike + 7) // 8).sum()) + math.ceil(
            (self.bits - alike) * spec.numel / 8
        )
        return max(
            codes + len(layout.owner) * spec.work.itemsize,
            int(costs[:, int(self.traits.drops)].max()),
        )

    def error_bound(self, x: Tensor, spec: Spec, ctx: RankContext) -> Tensor:
        # all pieces decide together which width each has: none is further off than in the least
        least = uniform(next(filter(None, self.choices)), self.block, self.rounding)  # type: ignore[arg-type]  # one of its widths
        error = x.double().abs() * self.traits.drops
        if not spec.parts:
            return torch.maximum(least.error_bound(x, spec, ctx), error)
        for extent in spec.extents():  # no block crosses a parameter
            own = slice(extent.at, extent.at + extent.high - extent.low)
            alone = Spec((), 0, extent.high - extent.low, spec.dtype)
            error[own] = torch.maximum(error[own], least.error_bound(x[own], alone, ctx))
        return error


def _row_errors(rows: Tensor, choices: tuple[int, ...], stochastic: bool) -> Tensor:
    """Return the squared error of each block in each width, in units of the largest magnitude's
    square: (m, block) -> (m, O) float64.

    A block that is not finite has none, but must be sent: infinite in no bits.
    """
    # 1. Errors of blocks over their absmax, some rows at a time: they then stay in the cache.
    results = []
    for some in rows.split(
        max(_AT_ONCE // rows.shape[1], 1) if rows.device.type == "cpu" else len(rows)
    ):
        absmax = some.abs().amax(1)  # amax hands NaN on
        unit, errors = some / torch.where(absmax > 0, absmax, 1)[:, None], []
        for bits in choices:
            if bits:
                top = reference.levels(bits, "tread")[1]
                off = unit * top
                # Distance to the nearest level; at random, p (1 - p) is the mean square.
                off = off.sub_(off.round()).abs_()
                errors.append(
                    (off - off.square() if stochastic else off.square_()).sum(1).double() / top**2
                )
            else:
                errors.append(unit.square().sum(1).double())
        results.append(torch.cat([absmax.double()[:, None], torch.stack(errors, 1)], 1))
    # 2. One unit for all blocks: the square of the largest finite magnitude, lest squares overflow.
    joined = torch.cat(results)
    sizes, shares = joined[:, :1], joined[:, 1:]
    sound = sizes.isfinite()
    largest = torch.where(sound, sizes, 0).amax().clamp(min=torch.finfo(torch.float64).tiny)
    none = torch.tensor(
        [0.0 if bits else float("inf") for bits in choices], dtype=torch.float64, device=rows.device
    )
    return torch.where(sound, shares * (sizes / largest).square(), none)


def _total(errors: Tensor, picked: Tensor) -> float:
    return float(errors.gather(1, picked[:, None]).sum())
