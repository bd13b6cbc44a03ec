"""Keep JSON in a tensor, so that a checkpoint of tensors holds facts as well."""

from __future__ import annotations

import json
from typing import Any

import torch
from torch import Tensor

_GRAIN_BYTES = 8192


def pack_json(value: Any) -> Tensor:
    """Return JSON as bytes, filled up with blanks to a multiple of 8192.

    DCP loads into tensors of the saved size, so the size must seldom change.
    """
    text = json.dumps(value).encode()
    return torch.frombuffer(
        bytearray(text.ljust(-(-len(text) // _GRAIN_BYTES) * _GRAIN_BYTES)), dtype=torch.uint8
    )


def unpack_json(packed: Tensor) -> Any:
    """Return what `pack_json` packed.

    Example:
        >>> unpack_json(pack_json({"step": 3}))
        {'step': 3}
    """
    return json.loads(packed.numpy().tobytes())
