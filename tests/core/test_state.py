"""State that members keep between flights."""

import torch

from thinwire.core import Leaf, State


def test_walking_a_state_shows_names_and_hides_spans() -> None:
    leaf = Leaf(torch.zeros(1), "private")
    state = State(
        {"a": leaf},
        {
            "0": State({"b": leaf}),
            "1": State({"b": leaf}),
            "inner": State({"c": leaf}, {"2": State({"d": leaf})}),
        },
    )
    assert [path for path, _ in state.walk()] == ["a", "b", "b", "inner/c", "inner/d"]
    assert state.child("inner")["c"] is leaf
