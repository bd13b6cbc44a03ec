"""Ranks of one host share the writing of a checkpoint, and trust no announcement of sizes."""

from __future__ import annotations

from typing import Any

import pytest

from thinwire.train.host_ranks import assigned, sizes_from


def test_each_tensor_has_one_writer_that_holds_it_and_all_write_about_as_much() -> None:
    shared = {f"layer{i}": 10 for i in range(9)}
    sizes = [shared | {"mine": 30}, shared | {"yours": 5}, shared]
    writers = assigned(sizes)
    assert sorted(name for names in writers for name in names) == sorted({*shared, "mine", "yours"})
    assert all(name in sizes[rank] for rank, names in enumerate(writers) for name in names)
    loads = [sum(sizes[rank][name] for name in names) for rank, names in enumerate(writers)]
    assert max(loads) - min(loads) <= 10


@pytest.mark.parametrize("inventory", [None, [1], {"a": -1}, {"a": 1.5}, {"a": True}])
def test_an_inventory_is_sizes_by_name(inventory: Any) -> None:
    with pytest.raises(ValueError, match="no sizes by name"):
        sizes_from(inventory)
    assert sizes_from({"a": 0, "b": 3}) == {"a": 0, "b": 3}
