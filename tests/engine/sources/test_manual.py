"""`attach(source="manual")`: one step of the schedule for each `sync.reduce()`."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import thinwire
from tests.engine.models import loss_of, mlp, weights_of
from tests.threads import on_threads
from thinwire import Strategy
from thinwire.core import Driver
from thinwire.engine.syncer import Syncer
from thinwire.errors import AttachError, NotLandedError
from thinwire.how import gather
from thinwire.on import deltas
from thinwire.what import feedback, topk
from thinwire.when import every


def small() -> tuple[nn.Module, torch.optim.Optimizer, Syncer]:
    model = nn.Linear(3, 2)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    return model, optimizer, thinwire.attach(model, optimizer, source="manual")


def grads_of(model: nn.Module) -> torch.Tensor:
    return torch.cat([param.grad.reshape(-1) for param in model.parameters()])  # type: ignore[union-attr]


def test_several_backward_passes_make_one_step() -> None:
    """The mean over ranks of the sums over passes, at the price of one launch."""

    def work(driver: Driver) -> tuple[torch.Tensor, torch.Tensor, float, int]:
        model = mlp()
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        with thinwire.attach(
            model, optimizer, driver=driver, source="manual", bucket_bytes=500
        ) as sync:
            for micro in range(3):
                loss_of(model, micro, driver.rank).backward()
            own = grads_of(model).clone()
            sync.reduce()
            return own, grads_of(model), sync.report().sent_bytes, sync.step

    results = on_threads(2, work)
    mean = (results[0][0] + results[1][0]) / 2
    numel = mean.numel()
    for rank in range(2):
        own, landed, sent, step = results[rank]
        assert not torch.equal(own, landed)
        assert torch.allclose(landed, mean, rtol=1e-6, atol=1e-7)
        assert (sent, step) == (4.0 * numel, 1)
    assert torch.equal(results[0][1], results[1][1])


def test_a_step_without_reduce_is_refused_on_every_rank() -> None:
    def work(driver: Driver) -> str:
        model = mlp()
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        with thinwire.attach(model, optimizer, driver=driver, source="manual") as sync:
            before = weights_of(model)
            loss_of(model, 0, driver.rank).backward()
            with pytest.raises(NotLandedError) as caught:
                optimizer.step()
            assert torch.equal(before, weights_of(model))
            sync.reduce()  # as the error says
            optimizer.step()
            assert not torch.equal(before, weights_of(model))
        return str(caught.value)

    for text in on_threads(2, work).values():
        assert "optimizer.step() at step 0: no sync.reduce() has taken the gradient of" in text
        assert "call sync.reduce() after backward() and before the step" in text


def test_a_backward_pass_after_reduce_is_refused_at_the_step() -> None:
    model, optimizer, sync = small()
    with sync:
        model(torch.ones(1, 3)).sum().backward()
        sync.reduce()
        model(torch.ones(1, 3)).sum().backward()
        with pytest.raises(NotLandedError, match=r"since the last sync\.reduce"):
            optimizer.step()


def test_reduce_with_a_landed_mean_in_grad_is_refused() -> None:
    model, optimizer, sync = small()
    with sync:
        model(torch.ones(1, 3)).sum().backward()
        sync.reduce()
        optimizer.step()
        model(torch.ones(1, 3)).sum().backward()  # no zero_grad()
        with pytest.raises(NotLandedError, match=r"still holds the mean of the last reduce\(\)"):
            sync.reduce()
        optimizer.zero_grad()
        model(torch.ones(1, 3)).sum().backward()
        sync.reduce()
        optimizer.step()
        assert sync.step == 2


def test_gradients_that_no_backward_pass_made_are_taken_and_missed() -> None:
    """As of loops in which hooks do not run: torch.func, a graph of its own, gradients by hand."""
    model, optimizer, sync = small()
    with sync:
        for param in model.parameters():
            param.grad = torch.ones_like(param)
        with pytest.raises(NotLandedError, match=r"no sync\.reduce\(\) has taken the gradient"):
            optimizer.step()
        before = weights_of(model)
        sync.reduce()
        optimizer.step()
        assert torch.allclose(weights_of(model), before - 0.1)


def test_accumulation_by_the_schedule_counts_calls_of_reduce() -> None:
    model = nn.Linear(3, 2)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    strategy = Strategy(when=every(2), what=feedback(topk(0.5)), how=gather())
    with thinwire.attach(model, optimizer, strategy, source="manual") as sync:
        model(torch.ones(1, 3)).sum().backward()
        sync.reduce()
        assert sync.accumulating
        with pytest.raises(NotLandedError, match="no mean has landed"):
            optimizer.step()
        model(torch.ones(1, 3)).sum().backward()
        sync.reduce()
        assert not sync.accumulating
        optimizer.step()


def test_a_rank_without_data_skips() -> None:
    def work(driver: Driver) -> torch.Tensor:
        model = mlp()
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        with thinwire.attach(model, optimizer, driver=driver, source="manual") as sync:
            for step in range(3):
                if step == 1 and driver.rank == 1:
                    sync.skip_step()
                else:
                    loss_of(model, step, driver.rank).backward()
                    sync.reduce()
                optimizer.step()
                optimizer.zero_grad()
        return weights_of(model)

    results = on_threads(2, work)
    assert torch.equal(results[0], results[1])


def test_a_closed_syncer_reduces_nothing_and_leaves_no_hooks() -> None:
    model, optimizer, sync = small()
    sync.close()
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    with pytest.raises(AttachError, match="of a syncer that is closed"):
        sync.reduce()
    assert not optimizer._optimizer_step_pre_hooks
    assert all(not param._post_accumulate_grad_hooks for param in model.parameters())


def test_local_steps_have_no_manual_source() -> None:
    model = nn.Linear(3, 2)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with pytest.raises(AttachError, match=r"source='manual' with deltas.*no gradient travels"):
        thinwire.attach(model, optimizer, Strategy(every(4), on=deltas()), source="manual")
    with pytest.raises(AttachError, match="source='hand': choose 'hooks' or 'manual'"):
        thinwire.attach(model, optimizer, source="hand")  # type: ignore[arg-type]


class Gated(nn.Module):
    """Two layers, the second of which runs at even steps only."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 3)
        self.step = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        self.step += 1
        return self.second(x) if self.step % 2 else x


def test_means_that_no_module_needs_land_at_the_next_reduce() -> None:
    weights = []
    for source, overlap in (("hooks", "backward"), ("manual", "backward"), ("manual", "forward")):
        torch.manual_seed(0)
        model = Gated()
        optimizer = torch.optim.AdamW(model.parameters(), 0.1)
        with thinwire.attach(
            model,
            optimizer,
            source=source,  # type: ignore[arg-type]
            overlap=overlap,  # type: ignore[arg-type]
            bucket_bytes=1,
        ) as sync:
            for step in range(5):
                model(torch.full((1, 3), 1.0 + step)).square().sum().backward()
                if source == "manual":
                    sync.reduce()
                optimizer.step()
                optimizer.zero_grad()
            sync.land()
        weights.append(weights_of(model))
    assert torch.equal(weights[0], weights[1])
    assert torch.equal(weights[0], weights[2])


def test_a_gradient_from_weights_that_were_not_stepped_is_refused() -> None:
    """They were used around the module that holds them, so their landing came too late."""
    model = nn.ModuleDict({"used": nn.Linear(3, 3), "around": nn.Linear(3, 3)})
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    sync = thinwire.attach(model, optimizer, source="manual", overlap="forward", bucket_bytes=1)

    def backward(around: bool) -> None:
        x = model["used"](torch.ones(1, 3))
        weight = model["around"].weight
        (x @ weight if around else model["around"](x)).sum().backward()

    for _ in range(2):
        backward(around=False)
        sync.reduce()
        optimizer.step()
        optimizer.zero_grad()
    backward(around=True)
    with pytest.raises(AttachError, match="no module that holds it"):
        sync.reduce()
