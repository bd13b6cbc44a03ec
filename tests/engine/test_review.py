"""What a review of the engine found, each as it was reproduced."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import thinwire
from tests.engine.models import WIDTH, loss_of, mlp, train, weights_of
from tests.ranks import run_ranks
from thinwire import Strategy
from thinwire.errors import AttachError, DisagreementError, NotLandedError
from thinwire.how import gather, hierarchical, native
from thinwire.on import deltas, parameters, sgd
from thinwire.what import feedback, uniform
from thinwire.when import delayed, every, staggered


def _sgd(model: nn.Module) -> torch.optim.SGD:
    return torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.1)


def test_a_delayed_gradient_with_a_scaler_is_refused():
    model = mlp()
    scaler = torch.amp.GradScaler("cpu")
    with pytest.raises(AttachError, match="GradScaler with delayed"):
        thinwire.attach(model, _sgd(model), Strategy(delayed(1, every(1))), scaler=scaler)


def test_a_checkpoint_in_the_middle_of_an_accumulation_is_refused():
    model = mlp()
    with thinwire.attach(model, _sgd(model), Strategy(every(2))) as sync:
        loss_of(model, 0, 0).backward()
        with pytest.raises(NotLandedError, match="middle of an accumulation"):
            sync.state_dict()
        loss_of(model, 1, 0).backward()
        sync.state_dict()


def test_unfreezing_is_refused_on_local_steps_too():
    model = mlp()
    model[0].requires_grad_(False)
    optimizer = _sgd(model)
    with thinwire.attach(model, optimizer, Strategy(every(2), on=deltas(outer=sgd(1.0)))):
        model[0].requires_grad_(True)
        loss_of(model, 0, 0).backward()
        with pytest.raises(AttachError, match="was frozen"):
            optimizer.step()


def _bent_while_frozen(rank: int) -> str:
    model = mlp()
    model[0].requires_grad_(False)
    with thinwire.attach(model, _sgd(model)) as sync:
        sync.check()
        with torch.no_grad():
            model[0].bias += rank
        with pytest.raises(DisagreementError) as error:
            sync.check()
        return str(error.value)


def test_check_looks_at_frozen_parameters():
    for said in run_ranks(2, _bent_while_frozen):
        assert "'0.bias' differs" in said


def _norm_between_landings(rank: int, strategy: Strategy) -> int:
    model = nn.Sequential(nn.BatchNorm1d(WIDTH), nn.Linear(WIDTH, 5))
    optimizer = _sgd(model)
    with thinwire.attach(model, optimizer, strategy) as sync:
        sync.check()
        for step in range(3):
            loss_of(model, step, rank).backward()
            if strategy.on.clock == "step" or step % 2:
                optimizer.step()
            sync.check()
        return sync.step


@pytest.mark.parametrize(
    "strategy",
    [Strategy(every(2)), Strategy(every(2), on=deltas(outer=sgd(1.0)))],
    ids=["gradients", "deltas"],
)
def test_check_between_landings_leaves_buffers_out(strategy):
    assert run_ranks(2, _norm_between_landings, strategy) == [3, 3]


def _fragments(rank: int) -> None:
    model = mlp()
    optimizer = _sgd(model)
    with thinwire.attach(
        model, optimizer, Strategy(staggered(2, every(4)), on=parameters())
    ) as sync:
        train(model, optimizer, rank, range(2))
        with pytest.raises(NotLandedError):
            sync.check()


def test_check_knows_that_one_fragment_is_not_all():
    run_ranks(2, _fragments)


def _weighted(rank: int, common: bool) -> torch.Tensor:
    model = mlp(dtype=torch.float64)
    optimizer = _sgd(model)
    with thinwire.attach(
        model, optimizer, Strategy(every(2), on=parameters()), weight=[1, 3][rank]
    ) as sync:
        train(model, optimizer, rank, range(1))
        mine = weights_of(model)
        with sync.common_weights():
            got = weights_of(model)
        assert torch.equal(mine, weights_of(model))
        return got if common else mine


def test_common_weights_of_parameters_are_the_weighted_mean():
    first, second = run_ranks(2, _weighted, False)
    for got in run_ranks(2, _weighted, True):
        assert torch.allclose(got, (first + 3 * second) / 4, rtol=0, atol=1e-14)


def _reweighed(rank: int) -> list[float]:
    model = mlp()
    with thinwire.attach(model, _sgd(model)) as sync:
        sync.weigh([1.0, 4.0][rank])
        state = sync.state_dict()
    with thinwire.attach(model, _sgd(model)) as sync:
        sync.load_state_dict(state)
        held = list(sync.weights.shares)
    with (
        thinwire.attach(model, _sgd(model), seed=1) as sync,
        pytest.raises(AttachError, match="seed=0"),
    ):
        sync.load_state_dict(state)
    return held


def test_weights_and_seed_are_in_the_checkpoint():
    assert run_ranks(2, _reweighed) == [[0.2, 0.8]] * 2


def _recut(rank: int, slice_bytes: int | None, states: list | None):
    model = mlp()
    optimizer = _sgd(model)
    strategy = Strategy(
        every(1), feedback(uniform(4, block=2)), hierarchical(native(), gather(), 2)
    )
    with thinwire.attach(model, optimizer, strategy, slice_bytes=slice_bytes) as sync:
        if states is None:
            train(model, optimizer, rank, range(3))
        else:
            sync.load_state_dict({key: value for state in states for key, value in state.items()})
        return sync.state_dict()


def test_residuals_survive_another_slicing_of_a_hierarchy():
    before = run_ranks(4, _recut, None, None)
    after = run_ranks(4, _recut, 512, before)
    sums = []
    for states in (before, after):
        total: dict[str, torch.Tensor] = {}
        for state in states:
            for key, value in state.items():
                scope, path, *rest = key.split("|", 3)
                if path.endswith("residual"):
                    low, high = map(int, rest[0].split(":"))
                    total.setdefault(rest[1], torch.zeros(WIDTH * WIDTH, dtype=torch.float64))[
                        low:high
                    ] += value.double()
                    assert scope.startswith("rank")
        sums.append(total)
    assert sums[0].keys() == sums[1].keys()
    for name, total in sums[0].items():
        assert torch.equal(total, sums[1][name]), name


def test_closing_one_of_two_syncers_on_a_scaler_leaves_the_other_at_work():
    scaler = torch.amp.GradScaler("cpu")
    models = [mlp(), mlp()]
    optimizers = [_sgd(model) for model in models]
    strategy = Strategy(every(1), on=deltas(outer=sgd(1.0)))
    first, second = (
        thinwire.attach(m, o, strategy, scaler=scaler)
        for m, o in zip(models, optimizers, strict=True)
    )
    first.close()
    scaler.scale(loss_of(models[1], 0, 0)).backward()
    scaler.step(optimizers[1])
    scaler.update()
    assert (first.step, second.step) == (0, 1)
    second.close()


def test_a_step_that_does_not_count_is_told():
    model = mlp()
    optimizer = _sgd(model)
    with thinwire.attach(model, optimizer, Strategy(every(1), on=deltas(outer=sgd(1.0)))) as sync:
        for param in model.parameters():
            param.grad = torch.zeros_like(param)
        with pytest.warns(UserWarning, match="does not count"):
            optimizer.step()
        assert sync.step == 0
