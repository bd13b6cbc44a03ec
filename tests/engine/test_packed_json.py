"""JSON in a tensor comes back as it was, and its size seldom changes."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from thinwire.engine.packed_json import pack_json, unpack_json


@pytest.mark.parametrize("value", [{}, [1, 2.5, None], {"name": "é", "deep": {"a": [True]}}, "x"])
def test_json_comes_back(value: Any) -> None:
    assert unpack_json(pack_json(value)) == value


@pytest.mark.parametrize(("length", "nbytes"), [(1, 8192), (8190, 8192), (8191, 16384)])
def test_the_size_is_a_multiple_of_8192(length: int, nbytes: int) -> None:
    packed = pack_json("x" * length)
    assert (packed.numel(), packed.dtype) == (nbytes, torch.uint8)
