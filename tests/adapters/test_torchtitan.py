"""torchtitan's trainer: its debug model on CPUs, and what is refused."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import logging
import runpy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests import titans
from tests.members import ROOT
from tests.ranks import run_ranks
from thinwire import Strategy
from thinwire.adapters import torchtitan
from thinwire.adapters.torchtitan import Thinwire
from thinwire.engine.shards import fsdp_modules, local_of
from thinwire.errors import AttachError, CheckpointError
from thinwire.how import two_shot
from thinwire.on import deltas
from thinwire.what import feedback, uniform
from thinwire.when import every

needed = pytest.mark.skipif(
    importlib.util.find_spec("torchtitan") is None, reason="pip install 'thinwire[torchtitan]'"
)
LOCAL = Strategy(every(2), feedback(uniform(8)), two_shot(), deltas())
Made = tuple[list[tuple[float, float]], Tensor, dict[str, float]]


def _native(config: Any) -> Any:
    """torchtitan's own trainer; gloo cannot multiply as it reduces."""
    spec = config.model_spec

    def parallelize(*args: Any, **given: Any) -> Any:
        model = spec.parallelize_fn(*args, **given)
        for module in fsdp_modules(model):
            module.set_force_sum_reduction_for_comms(True)
        return model

    return replace(config, model_spec=replace(spec, parallelize_fn=parallelize)).build()


def _trained(trainer: Any, stop: int) -> Made:
    """Losses and norms of gradients, this rank's shards at the end, and what was logged last."""
    seen, logged, logger = [], {}, trainer.metrics_processor
    log = logger.log

    def keep(step: int, loss: float, most: float, norm: float, **more: Any) -> None:
        seen.append((float(loss), float(norm)))
        log(step, loss, most, norm, **more)

    logger.log = keep
    logger.logger.log = lambda metrics, _: logged.update(metrics)
    if stop:  # as if it were killed then: the schedule of learning rates stays that of all steps
        trainer.should_continue_training = lambda: trainer.step < stop
    trainer.train()
    trainer.close()
    params = trainer.model_parts[0].parameters()
    return seen, torch.cat([local_of(param).reshape(-1) for param in params]), logged


def _run(
    rank: int, folder: Path, strategy: Any, steps: int, passes: int, saves: bool, stop: int = 0
) -> Made:
    logging.disable()
    config = titans.config_of(folder, rank, 2, 2, steps)
    config.training.global_batch_size = 8 * passes
    config.checkpoint.enable = saves
    config.checkpoint.interval = 3
    trainer = _native(config) if strategy is None else Thinwire(strategy).build(config)
    return _trained(trainer, stop)


@needed
@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("passes", "sends"), [(1, 1), (2, 1), (2, 2)])
def test_dense_is_torchtitan_s_own_hsdp(passes: int, sends: int, tmp_path: Path) -> None:
    """Bit for bit with one pass a step; with several but for the order of sums."""
    native, ours = (
        run_ranks(4, _run, tmp_path, strategy, 5, passes, False, timeout=300)
        for strategy in (None, Strategy(every(sends)))
    )
    assert len(native[0][0]) == 5
    for (losses, weights, _), (same, equal, logged) in zip(native, ours, strict=True):
        if passes == 1:
            assert losses == same
            assert torch.equal(weights, equal)
        assert float((torch.tensor(losses) - torch.tensor(same)).abs().max()) < 1e-4
        assert float((weights - equal).abs().max()) < 1e-3
        assert logged["thinwire/sent_megabytes"] > 0 or logged == {}


@needed
@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "strategy",
    [LOCAL, Strategy(what=feedback(uniform(4)), how=two_shot())],
    ids=["local", "4 bits"],
)
def test_a_run_goes_on_from_torchtitan_s_checkpoint(strategy: Strategy, tmp_path: Path) -> None:
    """Saved in the middle of a period, with each rank's own weights and residuals."""
    for part in ("never", "again"):
        (tmp_path / part).mkdir()
    never = run_ranks(4, _run, tmp_path / "never", strategy, 6, 1, True, timeout=300)
    run_ranks(4, _run, tmp_path / "again", strategy, 6, 1, True, 3, timeout=300)
    again = run_ranks(4, _run, tmp_path / "again", strategy, 6, 1, True, timeout=300)
    for (losses, weights, _), (rest, same, _) in zip(never, again, strict=True):
        assert losses[3:] == rest
        assert torch.equal(weights, same)
    assert torch.equal(never[0][1], never[2][1])  # the common weights, at the end
    assert losses[-1] < losses[0]


def _example(rank: int, folder: Path) -> str:
    """What the example prints, on a configuration for CPUs in place of what is read of argv."""
    logging.disable()
    config = titans.config_of(folder, rank, 2, 2, 8)
    from torchtitan.config import ConfigManager

    ConfigManager.parse_args = lambda *_: config
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        runpy.run_path(str(ROOT / "examples" / "torchtitan_hsdp.py"), run_name="__main__")
    return said.getvalue()


@needed
@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.filterwarnings("ignore")
def test_the_example_says_what_it_sent(tmp_path: Path) -> None:
    first, *others = run_ranks(4, _example, tmp_path, timeout=300)
    assert "fewer than dense fp32" in first
    assert not any(others)


def _without_state(rank: int, folder: Path) -> str:
    logging.disable()
    config = titans.config_of(folder, rank, 2, 2, 6)
    config.checkpoint.enable = True
    trainer = Thinwire(LOCAL).build(config)
    try:
        with pytest.raises(CheckpointError) as error:
            trainer.train()
    finally:
        trainer.close()
    return str(error.value)


@needed
@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.filterwarnings("ignore")
def test_a_checkpoint_without_a_strategy_s_state_is_refused(tmp_path: Path) -> None:
    run_ranks(4, _run, tmp_path, None, 3, 1, True, timeout=300)
    for said in run_ranks(4, _without_state, tmp_path, timeout=300):
        assert "step-3" in said
        assert "holds no syncer called 'sync'" in said


REFUSED = {
    "there is one replica": {"parallelism__data_parallel_replicate_degree": 1},
    "has the replicas in the mesh": {"parallelism__spmd_backend": "full_dtensor"},
    "a pipeline stage has an optimiser": {"parallelism__pipeline_parallel_degree": 2},
    "experts are sharded over other ranks": {"parallelism__expert_parallel_degree": 2},
    "runs no hooks of parameters": {"training__disable_cuda_graphs": False},
    "this rank's own again": {"checkpoint__async_mode": "async_with_pinned_mem"},
}


class _Config:
    """What is read of torchtitan's configuration, in a run that works."""

    def __init__(self) -> None:
        self.parallelism, self.training, self.checkpoint = _Some(), _Some(), _Some()
        self.model_spec, self.validator = _Some(), _Some()
        self.model_spec.parallelize_fn, self.validator.enable = None, False
        self.parallelism.data_parallel_replicate_degree = 2
        self.parallelism.spmd_backend = "partial_dtensor"
        self.parallelism.pipeline_parallel_degree = 1
        self.parallelism.expert_parallel_degree = 1
        self.training.disable_cuda_graphs = True
        self.checkpoint.async_mode = "disabled"


class _Some:
    def __getattr__(self, name: str) -> Any:
        raise AttributeError(name)

    def __setattr__(self, name: str, value: Any) -> None:
        self.__dict__[name] = value


@pytest.mark.parametrize(("said", "changes"), REFUSED.items(), ids=REFUSED.keys())
def test_what_no_strategy_can_serve_is_refused_before_anything_is_built(
    said: str, changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torchtitan, "installed", lambda _: "0.3.0")
    config = _Config()
    for path, value in changes.items():
        part, _, name = path.partition("__")
        setattr(getattr(config, part), name, value)
    with pytest.raises(AttachError, match=said):
        Thinwire(LOCAL).build(config)


def test_a_configuration_that_has_moved_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torchtitan, "installed", lambda _: "0.3.7")
    for path in torchtitan.OF_CONFIG:
        config = _Config()
        part, name = path.split(".")
        del getattr(config, part).__dict__[name]
        with pytest.raises(AttachError, match=rf"torchtitan 0.3.7 has no `{path}`.* 0.3$"):
            Thinwire(LOCAL).build(config)


class _Trainer:
    """A trainer of a version that has renamed what keeps its checkpoints."""

    closed = False

    def close(self) -> None:
        _Trainer.closed = True


@dataclass
class _Buildable:
    """A configuration that works and builds that trainer."""

    model_spec: Any = None
    parallelism: Any = None
    training: Any = None
    checkpoint: Any = None
    validator: Any = None

    def build(self) -> _Trainer:
        return _Trainer()


@dataclass
class _Spec:
    parallelize_fn: Any = None


def test_a_trainer_that_has_moved_is_closed_and_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torchtitan, "installed", lambda _: "0.3.7")
    works = vars(_Config())
    config = _Buildable(**{**works, "model_spec": _Spec()})
    with pytest.raises(AttachError, match="has no `model_parts` in its trainer"):
        Thinwire(LOCAL).build(config)
    assert _Trainer.closed


def test_another_version_is_warned_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torchtitan, "installed", lambda _: "9.9.0")
    config = _Config()
    config.parallelism.data_parallel_replicate_degree = 1
    with pytest.warns(UserWarning, match="this is 9.9.0"), pytest.raises(AttachError):
        Thinwire().build(config)


def test_without_the_extra_the_command_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torchtitan, "installed", lambda _: None)
    with pytest.raises(AttachError, match=r"pip install 'thinwire\[torchtitan\]'"):
        Thinwire().build(_Config())
