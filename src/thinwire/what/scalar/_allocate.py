"""Choose one of several options for each piece: the least sum of errors whose costs fit a room,
greedily on convex hulls.

Steps:
    1. Each piece walks from its first option along the lower convex hull of its (cost, error)
       points: always to the option of the largest saving a byte. The rates of a piece fall from
       move to move.
    2. All moves of all pieces by rate; the longest beginning that the room holds is made. At its
       last rate λ, every piece stands at its least error + λ cost: no choice of the same cost or
       less has less error (Everett 1963; Shoham & Gersho 1988).
    3. What is left of the room: always the step up of the largest saving a byte that it holds, on a
       hull or not.
So the error is above the least there is by less than what the first move that did not fit would
save.
Legend: P pieces, O options in order of cost.
"""

from __future__ import annotations

import torch
from torch import Tensor


def allocate(errors: Tensor, costs: Tensor, room: int) -> Tensor:
    """Return the option of each piece: (P,) int64.

    Args:
        errors: (P, O) float64 on the CPU; may be infinite.
        costs: (P, O) int64, not falling along O.
        room: what the costs may come to; the first options fit.

    Example:
        >>> errors = torch.tensor([[9.0, 4.0, 1.0], [90.0, 40.0, 10.0]], dtype=torch.float64)
        >>> allocate(errors, torch.tensor([[1, 2, 3], [1, 2, 3]]), room=4)
        tensor([0, 2])
    """
    at = torch.zeros(len(errors), dtype=torch.int64, device=errors.device)
    if not len(errors):
        return at
    # 1. and 2. Make the longest beginning of all moves, by falling rate, that the room holds.
    # `amax` leaves each piece at its furthest move: rates of a piece fall, so none is skipped.
    rows, targets, rates, prices = _moves(errors, costs)
    order = rates.argsort(descending=True, stable=True)
    rows, targets = rows[order], targets[order]
    left = room - int(costs[:, 0].sum())
    spent = prices[order].cumsum(0)
    made = int((spent <= left).sum())
    at.scatter_reduce_(0, rows[:made], targets[:made], "amax")
    left -= int(spent[made - 1]) if made else 0
    # 3. Spend what is left, one step up at a time; only the piece that moved changes its rates.
    rates, steps = _steps(errors, costs, at)
    while True:
        best = int(torch.where(steps <= left, rates, -1.0).argmax())
        row, option = divmod(best, errors.shape[1])
        if not (rates[row, option] > 0 and steps[row, option] <= left):
            return at
        left -= int(steps[row, option])
        at[row] = option
        own = slice(row, row + 1)
        rates[own], steps[own] = _steps(errors[own], costs[own], at[own])


def _steps(errors: Tensor, costs: Tensor, at: Tensor) -> tuple[Tensor, Tensor]:
    """Return what each step from where pieces stand to each option saves a byte (-1 where nothing,
    or where it lies behind), and its bytes: (P, O) each."""
    here = at[:, None]
    saved, price = errors.gather(1, here) - errors, costs - costs.gather(1, here)
    ahead = torch.arange(errors.shape[1], device=errors.device) > here
    return torch.where(
        ahead & (saved > 0), saved / price.clamp(min=1e-9), -1.0
    ), price  # what costs nothing comes first


def _moves(errors: Tensor, costs: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return every move along the hulls, those of a piece in order: which piece, to which option,
    the saving a byte, and the bytes."""
    # All pieces walk their hulls at once, one move a turn; a piece has fewer than O moves.
    at, everyone = (
        torch.zeros(len(errors), dtype=torch.int64, device=errors.device),
        torch.arange(len(errors), device=errors.device),
    )
    last = torch.full((len(errors),), float("inf"), dtype=errors.dtype, device=errors.device)
    batches: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
    for _ in range(errors.shape[1]):
        rates, steps = _steps(errors, costs, at)
        best, target = rates.max(1)
        moves = best > 0
        last = torch.minimum(last, best)  # they fall, but for rounding
        batches.append(
            (everyone[moves], target[moves], last[moves], steps[everyone, target][moves])
        )
        at = torch.where(moves, target, at)
    rows, targets, rates, prices = map(torch.cat, zip(*batches, strict=True))
    return rows, targets, rates, prices
