"""Gradients that tests of codecs are tried on."""

import torch
from torch import Tensor


def spread() -> dict[str, Tensor]:
    """Tensors of very different scale."""
    draw = torch.Generator().manual_seed(0)
    return {f"w{i}": torch.randn(64, 48, generator=draw) * 10.0**-i for i in range(3)} | {
        "bias": torch.randn(48, generator=draw)
    }
