"""Store anchors and outer state: in fewer bytes, or in the memory of the host."""

from __future__ import annotations

import copy
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from thinwire.core import Bucket, Leaf, Outer, State
from thinwire.on.outer import optim

Store: TypeAlias = Literal["bf16"] | None
Device: TypeAlias = Literal["cpu"] | None


def misfits(target: str, outer: Outer | None, store: Store, device: Device) -> list[str]:
    """Return what is wrong with these settings of a target."""
    reasons = []
    if store not in (None, "bf16"):
        reasons.append(f"{target}(store={store!r}): choose 'bf16', or None for the work dtype")
    if store == "bf16" and isinstance(outer, optim):
        reasons.append(
            f"{target}({outer!r}, store='bf16'): averages such as Adam's move by less than "
            "bfloat16 can hold, so they would stand still. "
            "Take nesterov(…) or sgd(…), or device='cpu' to save an accelerator's memory"
        )
    if device not in (None, "cpu"):
        reasons.append(
            f"{target}(device={device!r}): choose 'cpu', or None for where the parameters are"
        )
    return reasons


def anchored(bucket: Bucket, anchor: Tensor, outer: Outer, store: Store, device: Device) -> State:
    """Make an anchor and the outer optimiser's state for it.

    Args:
        store: "bf16" stores float32 in bfloat16; float64 is never narrowed.
        device: "cpu" stores all of it in the memory of the host.
    """
    state = State(
        {"anchor": Leaf(anchor, "replicated", bucket.spec)},
        {"outer": outer.bind(bucket).init(bucket.spec, anchor)},
    )
    # Only what is flat over the bucket is narrowed: counts and other whole tensors are small.
    for _, leaf in state.walk():
        narrow = leaf.spec is not None and store == "bf16" and leaf.value.dtype == torch.float32
        # a meta tensor has no storage to move: `thinwire recipes` only counts it
        stored_on = leaf.value.device if leaf.value.is_meta else device or leaf.value.device
        leaf.value = leaf.value.to(stored_on, torch.bfloat16 if narrow else leaf.value.dtype)
    return state


def twin(state: State) -> State:
    """Copy a state so that updating the copy leaves this one as it is; tensors are shared, as they
    are never written into."""
    return State(
        {name: copy.copy(leaf) for name, leaf in state.leaves.items()},
        {name: twin(child) for name, child in state.children.items()},
    )


def put(leaf: Leaf, flat: Tensor, drawn_from: Tensor) -> None:
    """Store new values in a leaf; float32 goes into bfloat16 by stochastic rounding, unbiased.

    Rounded to the nearest, an anchor would stand still wherever its moves are smaller than half a
    step of bfloat16 (1/512 of the value).

    Args:
        drawn_from: seeds the rounding, so that all ranks that hold the same one round alike.
    """
    if leaf.value.dtype == torch.bfloat16 and flat.dtype == torch.float32:
        # 1. The seed: ranks that hold the same delta round alike, without a message.
        generator = torch.Generator().manual_seed(
            int(drawn_from.contiguous().view(torch.int32).sum(dtype=torch.int64)) & (1 << 62) - 1
        )
        # 2. bfloat16 is the upper half of float32's bits. Add 16 random bits below that half and
        #    cut them off: a value rounds up with its fraction as probability.
        noise = torch.randint(
            0, 1 << 16, flat.shape, dtype=torch.int32, generator=generator, device="cpu"
        ).to(flat.device)
        bits = (flat.contiguous().view(torch.int32) + noise).bitwise_and_(-(1 << 16))
        flat = bits.view(torch.float32)  # its low 16 bits are zero, so bfloat16 holds it exactly
    leaf.flat = flat
