"""A saved state looked up by path and parameter: a rank's own, and sums and means of all ranks."""

from __future__ import annotations

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor

from thinwire.core import Part, Spec
from thinwire.engine.saved import META, Saved, read_folder
from thinwire.errors import CheckpointError

PARTS = (Part("a", (4,), 0, "vector"), Part("b", (2,), 4, "vector"))
SPEC = Spec(PARTS, 0, 6, torch.float32)


def runs(rank: int, a: list[float], b: list[float]) -> dict[str, Tensor]:
    """A rank's residual, of which the first parameter was cut in two."""
    return {
        f"rank{rank}|codec/residual|0:1|a": torch.tensor(a[:1]),
        f"rank{rank}|codec/residual|1:4|a": torch.tensor(a[1:]),
        f"rank{rank}|codec/residual|0:2|b": torch.tensor(b),
    }


def two_ranks() -> Saved:
    state = {META: torch.zeros(3)}
    state |= runs(0, [1, 2, 3, 4], [5, 6]) | runs(1, [10, 20, 30, 40], [50, 60])
    return Saved(state, 2)


def test_a_span_is_put_together_from_whatever_runs_cover_it() -> None:
    saved = two_ranks()
    assert saved.flat("codec/residual", SPEC, 0).tolist() == [1, 2, 3, 4, 5, 6]
    assert saved.flat("codec/residual", SPEC.span(2, 5), 1).tolist() == [30, 40, 50]


def test_sums_and_means_are_over_the_ranks_that_saved() -> None:
    saved = two_ranks()
    total = saved.total("codec/residual", SPEC)
    assert (total.dtype, total.tolist()) == (torch.float64, [11, 22, 33, 44, 55, 66])
    assert saved.mean("codec/residual", SPEC.span(0, 2), [0.75, 0.25]).tolist() == [3.25, 6.5]
    assert saved.total("codec/nothing", SPEC).tolist() == [0] * 6, "nothing was left"


def test_a_whole_tensor_is_read_as_elements() -> None:
    state = {
        f"rank{rank}|private/weights|whole|{name}": torch.full((size, 1), float(value))
        for rank, name, size, value in ((0, "a", 4, 1), (1, "a", 4, 3), (0, "b", 2, 10))
    }
    state["rank1|private/weights|0:2|b"] = torch.full((2,), 20.0)
    assert Saved(state, 2).mean("private/weights", SPEC, [0.5, 0.5]).tolist() == [2] * 4 + [15] * 2


def test_a_shard_takes_its_elements_of_the_whole() -> None:
    shard = Part("a", (2,), 0, "vector", offset=2)
    spec = Spec((shard,), 0, 2, torch.float32)
    state = {
        "rank0|codec/residual|0:3|a": torch.tensor([1.0, 2, 3]),
        "rank0|codec/residual|3:4|a": torch.tensor([4.0]),
        "all|codec/rounds|whole|a": torch.tensor(7),
        "all|codec/start|whole@0/2|a": torch.ones(3),
        "all|codec/start|whole@1/2|a": torch.zeros(3),
    }
    second, other = Saved(state, 1, "1/2"), Saved(state, 1, "1/3")
    assert second.flat("codec/residual", spec, 0).tolist() == [3, 4]
    assert second.total("codec/residual", spec).tolist() == [3, 4]
    assert second.whole("codec/start", "a").tolist() == [0, 0, 0]
    assert (second.resharded, other.resharded, Saved(state, 1).resharded) == (False, True, True)
    assert not other.has("codec/start", "a", None)
    assert int(other.whole("codec/rounds", "a")) == 7  # a count is of all shards


def test_an_element_that_nobody_saved_is_named() -> None:
    state = runs(0, [1, 2, 3, 4], [5, 6])
    del state["rank0|codec/residual|1:4|a"]
    with pytest.raises(
        CheckpointError,
        match=(
            r"lacks elements of 'codec/residual' of 'a' of rank 0; it holds those of ranks \[0\] "
            "of 1"
        ),
    ):
        Saved(state, 1).flat("codec/residual", SPEC, 0)


def test_a_rank_takes_its_own_state_or_that_of_its_number_modulo_the_world() -> None:
    saved = Saved(runs(0, [1, 2, 3, 4], [5, 6]) | runs(5, [1, 2, 3, 4], [5, 6]), 2)
    assert [saved.owner(rank) for rank in (0, 1, 2, 3, 5)] == [0, 1, 0, 1, 5]


def test_what_needs_all_ranks_names_those_that_are_missing() -> None:
    saved = Saved(runs(1, [1, 2, 3, 4], [5, 6]), 3)
    for read in (
        lambda: saved.total("codec/residual", SPEC),
        lambda: saved.mean("codec/residual", SPEC, [1, 0, 0]),
    ):
        with pytest.raises(
            CheckpointError, match=r"by 3 ranks and lacks those of ranks \[0, 2\]; another world"
        ):
            read()


def test_whole_tensors_are_found_by_rank_and_by_prefix() -> None:
    state = {
        "rank0|private/codec/age|whole|a": torch.tensor(3),
        "rank0|private/codec/old|whole|b": torch.tensor(4),
        "rank1|private/codec/age|whole|a": torch.tensor(5),
        "all|outer/velocity|whole|a": torch.tensor(6),
    }
    saved = Saved(state, 2)
    assert saved.whole("private/codec/age", "a", 1) == 5
    assert saved.whole("outer/velocity", "a") == 6
    assert not saved.has("outer/velocity", "a", 0)
    found = {(rest, part, int(value)) for rest, part, value in saved.wholes("private/codec/", 0)}
    assert found == {("age", "a", 3), ("old", "b", 4)}
    with pytest.raises(CheckpointError, match=r"has no 'outer/velocity' of 'b'$"):
        saved.whole("outer/velocity", "b")
    with pytest.raises(
        CheckpointError, match=r"of 'b' of rank 1; it holds those of ranks \[0, 1\]"
    ):
        saved.whole("private/codec/old", "b", 1)


def test_names_that_torch_compile_saved_are_plain_names() -> None:
    saved = Saved({"all|outer|whole|_orig_mod.a": torch.tensor(1)}, 1)
    assert saved.whole("outer", "a") == 1


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_a_folder_of_another_syncer_names_the_keys_that_it_has(tmp_path) -> None:
    dcp.save(
        {f"outer.{META}": torch.zeros(1), "model.w": torch.ones(2)},
        checkpoint_id=tmp_path / "saved",
        no_dist=True,
    )
    assert list(read_folder(tmp_path / "saved", "outer")) == [META]
    with pytest.raises(
        CheckpointError, match=r"no syncer called 'sync'; it was saved with the keys model, outer"
    ):
        read_folder(tmp_path / "saved", "sync")
