"""Entries of the store are read within bounds, as anybody may have written them."""

from __future__ import annotations

import pytest
import torch

from thinwire.errors import PayloadError
from thinwire.quorum.entries import (
    Bounds,
    Contribution,
    is_name,
    pack,
    read_contribution,
    read_json,
    read_ranks,
    read_weight,
    unpack,
)

LIFE = "0123456789ab"
BOUNDS = Bounds(ranks=3, weight=10.0, contribution_bytes=1000, snapshot_bytes=1000)


def test_entries_are_read_within_bounds() -> None:
    assert read_contribution([f"2.{LIFE}.7", 1000, 4], 4, BOUNDS) == Contribution(
        f"2.{LIFE}.7", 1000, 4
    )
    assert read_contribution([f"3.{LIFE}.7", 1000, 4], 4, BOUNDS) is None
    assert read_contribution([f"2.{LIFE}.7", 1001, 4], 4, BOUNDS) is None
    assert read_contribution([f"2.{LIFE}.7", 0, 4], 4, BOUNDS) is None
    assert read_contribution([f"2.{LIFE}.7", 1000, 5], 4, BOUNDS) is None
    assert not is_name(f"02.{LIFE}.1", 3)
    assert read_ranks([0, 2], BOUNDS) == (0, 2)
    for bad in ([3], [-1], "0", [True], None):
        with pytest.raises(PayloadError, match="is no list of ranks"):
            read_ranks(bad, BOUNDS)
    offer = Contribution(f"2.{LIFE}.7", 100, 4)
    assert read_weight({"rank": 2, "began": 4, "weight": 10}, offer, BOUNDS) == 10.0
    with pytest.raises(PayloadError, match=r"weight 10\.5 is not from 0 to 10"):
        read_weight({"rank": 2, "began": 4, "weight": 10.5}, offer, BOUNDS)
    with pytest.raises(PayloadError, match="of round 4, but its head has 2, 3"):
        read_weight({"rank": 2, "began": 3, "weight": 1.0}, offer, BOUNDS)
    with pytest.raises(PayloadError, match="2000 bytes of JSON where 1000 is the most"):
        read_json("9" * 2000, most=1000)


def test_every_prefix_and_every_flipped_byte_of_a_value_is_read_or_refused() -> None:
    blob = pack(
        {"rank": 1, "began": 0, "weight": 1.0},
        [torch.ones(2), torch.zeros(0), torch.tensor([True])],
    )
    for cut in range(len(blob)):
        with pytest.raises(PayloadError):
            unpack(blob[:cut])
    refused = 0
    for at in range(len(blob)):
        for bit in (0, 3, 7):
            flipped = bytearray(blob)
            flipped[at] ^= 1 << bit
            try:
                unpack(bytes(flipped))
            except PayloadError:
                refused += 1
    assert refused > 100
