"""What a framework has prepared: a wrapped model is found, ranks without a wrapper get an error."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.ddp import wrapped
from tests.engine.models import loss_of, mlp, sgd_of, weights_of
from tests.ranks import run_ranks
from tests.shards import loss_of as shard_loss
from tests.shards import mesh_of, sharded
from thinwire import Strategy
from thinwire.adapters.wrapped import attach_prepared, close_with_common_weights, states_of_ranks
from thinwire.errors import AttachError
from thinwire.how import two_shot
from thinwire.on import deltas
from thinwire.what import feedback, uniform
from thinwire.when import every

FOUR_BITS = Strategy(what=feedback(uniform(bits=4)), how=two_shot())


def _unwrapped(rank: int) -> str:
    model = torch.nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with pytest.raises(AttachError) as error:
        attach_prepared(model, optimizer, framework="the Trainer")
    return str(error.value)


def test_ranks_without_a_wrapper_are_told() -> None:
    assert all("nothing that averages" in text for text in run_ranks(2, _unwrapped))


def _found(rank: int) -> tuple[str, list[str], list[str]]:
    """By the bare model, as callbacks have it; then every rank's state in one dictionary."""
    ddp, optimizer = wrapped()
    sync = attach_prepared(ddp.module, optimizer, FOUR_BITS, framework="the Trainer")
    loss_of(ddp, 0, rank).backward()
    own = sorted(key for key in sync.state_dict() if key.startswith("rank"))
    whole = sorted(key for key in states_of_ranks(sync) if key.startswith("rank"))
    source = type(sync.source).__name__
    sync.close()
    return source, own, whole


def test_the_wrapper_of_a_model_is_found() -> None:
    (source, first, whole), (_, second, also) = run_ranks(2, _found)
    assert source == "DdpSource"
    assert whole == also == sorted({*first, *second})
    assert first != second


def test_alone_a_bare_model_is_attached() -> None:
    model = mlp()
    sync = attach_prepared(model, sgd_of(model), framework="the Trainer")
    assert type(sync.source).__name__ == "GradientHooks"
    sync.close()


@pytest.mark.parametrize("keep", [False, True])
def test_a_run_ends_with_the_weights_in_common_or_keeps_its_own(keep: bool) -> None:
    model = mlp()
    optimizer = sgd_of(model)
    start: Tensor = weights_of(model)
    sync = attach_prepared(
        model, optimizer, Strategy(every(4), on=deltas()), framework="the Trainer"
    )
    loss_of(model, 0, 0).backward()
    optimizer.step()
    own = weights_of(model)
    with pytest.warns(UserWarning, match="without a mean over ranks"):
        close_with_common_weights(sync, keep=keep)
    assert torch.equal(weights_of(model), own if keep else start)


def _sharded(rank: int) -> tuple[str, dict[str, Tensor], dict[str, Tensor]]:
    """A model that the framework has sharded by FSDP2: it is attached by its shards."""
    model = sharded(mesh_of(2, 2)["shard"])
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    sync = attach_prepared(model, optimizer, FOUR_BITS, framework="the Trainer")
    source = type(sync.source).__name__
    shard_loss(model, 0, rank).backward()
    own, whole = sync.state_dict(), states_of_ranks(sync)
    sync.close()
    return source, own, whole


def test_a_sharded_model_is_attached_and_its_states_are_gathered() -> None:
    made = run_ranks(4, _sharded)
    union = {key: value for _, own, _ in made for key, value in own.items()}
    for source, own, whole in made:
        assert source == "ShardHooks"
        assert whole.keys() == union.keys()
        assert all(torch.equal(whole[key], union[key]) for key in union)
        assert 0 < len(own) < len(union)
