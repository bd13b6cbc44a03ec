"""Who gets which of several options, so that the sum of errors is least and the sum of costs is
within a room: greedy on convex hulls.

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
    """The option of each piece: (P,) int64.

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
    rows, targets, rates, prices = _moves(errors, costs)
    order = rates.argsort(descending=True, stable=True)
    rows, targets = rows[order], targets[order]
    left = room - int(costs[:, 0].sum())
    spent = prices[order].cumsum(0)
    made = int((spent <= left).sum())
    at.scatter_reduce_(0, rows[:made], targets[:made], "amax")
    left -= int(spent[made - 1]) if made else 0
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
    """From where pieces stand to each option: the saving a byte (-1 for what saves nothing, or lies
    behind), and the bytes: (P, O) each."""
    here = at[:, None]
    saved, price = errors.gather(1, here) - errors, costs - costs.gather(1, here)
    ahead = torch.arange(errors.shape[1], device=errors.device) > here
    return torch.where(
        ahead & (saved > 0), saved / price.clamp(min=1e-9), -1.0
    ), price  # what costs nothing comes first


def _moves(errors: Tensor, costs: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Every move along the hulls, those of a piece in order: which piece, to which option, the
    saving a byte, and the bytes."""
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
