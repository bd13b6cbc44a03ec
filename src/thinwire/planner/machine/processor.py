"""Say what this machine's processors do well."""

from __future__ import annotations

import torch


def computes_bf16(device: torch.device) -> bool:
    """Return whether products in bf16 are faster: on GPUs that have them, on CPUs with AMX tiles.

    Example:
        >>> isinstance(computes_bf16(torch.device("cpu")), bool)
        True
    """
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    return bool(torch.cpu._is_amx_tile_supported())
