"""Compute the loss on held-out text, of the weights that ranks have in common."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from thinwire.engine import Syncer
from thinwire.models.objective import IGNORED
from thinwire.models.objective import loss as loss_of
from thinwire.train.everyone import Everyone
from thinwire.train.setup import Prepared

ROWS = 32  # of a validation batch
VALIDATION = 1 << 40  # a step that no training reaches, for the masks of held-out text


@torch.no_grad()
def held_out_loss(
    prepared: Prepared, sync: Syncer, everyone: Everyone, windows: Tensor, done: int
) -> float:
    """Return the mean loss on the held-out windows, in nats per target; all ranks call it alike.

    Args:
        prepared: what is trained, and how.
        sync: has the weights that ranks have in common.
        everyone: all ranks.
        windows: rows of held-out tokens.
        done: batches so far, for the label of the exchange.
    """
    rank, world = everyone.driver.rank, everyone.driver.world
    # 1. The windows in turn, some to each rank; a mask depends on the window's index, not on
    # the rank.
    total, targets = 0.0, 0
    batches, together = windows.split(ROWS), bool(prepared.shards)
    with sync.common_weights() as model, evaluating(model):
        for index, counts in passes_of(len(batches), rank, world, together):
            generator = torch.Generator().manual_seed(VALIDATION + index)
            batch = prepared.objective.batch(batches[index], generator).to(prepared.device)
            count = int((batch.targets != IGNORED).sum())
            with autocast(prepared):
                loss = float(loss_of(model, batch))
            if counts:
                total += loss * count
                targets += count
    # 2. Sums and counts of all ranks: a mean of means would weigh ranks alike.
    received = [
        struct.unpack("<dq", each)
        for each in everyone.all_gather(
            struct.pack("<dq", total, targets), f"step {done}: validation"
        )
    ]
    return float(sum(one for one, _ in received) / sum(count for _, count in received))


def passes_of(batches: int, rank: int, world: int, together: bool) -> Iterator[tuple[int, bool]]:
    """Yield the batches of a validation that a rank computes, and whether each counts.

    Args:
        together: ranks compute together, so all take as many passes; what is over counts nowhere.

    Example:
        >>> list(passes_of(3, rank=1, world=2, together=True))
        [(1, True), (2, False)]
        >>> list(passes_of(3, rank=1, world=2, together=False))
        [(1, True)]
    """
    for first in range(0, batches, world):
        if first + rank < batches:
            yield first + rank, True
        elif together:
            yield batches - 1, False


def autocast(prepared: Prepared) -> Any:
    """Return the context in which products have the run's precision."""
    bf16 = prepared.precision == "bf16"
    return torch.autocast(prepared.device.type, torch.bfloat16) if bf16 else nullcontext()


@contextmanager
def evaluating(model: nn.Module) -> Iterator[nn.Module]:
    """Switch the model to evaluation (no dropout) inside the block."""
    training = model.training
    model.eval()
    try:
        yield model
    finally:
        model.train(training)
