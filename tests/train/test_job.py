"""The training job: every recipe and every kind of model runs, alike on every rank and decided by
the seed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.ranks import run_ranks
from tests.train.runs import MODELS, result, small
from thinwire import Strategy, recipes
from thinwire.engine import Syncer, attach
from thinwire.errors import ConfigError, DataError, ModelError, NonFiniteError, StrategyError
from thinwire.on import deltas
from thinwire.optim.muon import Together
from thinwire.train.clock import accumulating
from thinwire.train.job import seed_dropout
from thinwire.train.setup import prepare_run
from thinwire.when import by_speed, every, warmup

SPOKEN = {
    "dense": "dense",
    "accumulation": "accumulation,passes=3",
    "delayed_update": "delayed_update,tau=2",
    "powersgd": "powersgd,rank=2,start=3",
    "topk_sgd": "topk_sgd,fraction=0.02",
    "qsgd": "qsgd,bits=4",
    "two_level": "two_level,node=1",
    "demo": "demo,size=8,k=4",
    "onebit_adam": "onebit_adam,start=3",
    "zero_one_adam": "zero_one_adam,until=9,kappa=2",
    "stl_sgd": "stl_sgd,first=1,last=2,rounds=2",
    "sparta": "sparta,fraction=0.05",
    "dgc_sgd": "dgc_sgd,fraction=0.02",
    "ef_signsgd": "ef_signsgd",
    "terngrad": "terngrad",
    "lag": "lag,xi=0.3",
    "parameter_server": "parameter_server",
    "decentralised": "decentralised",
    "noloco": "noloco,period=3",
    "eager_diloco": "eager_diloco,period=3",
    "intellect1": "intellect1,period=3",
    "muloco": "muloco,period=3",
    "for_link": "for_link,gbits=400",
    "local_sgd": "local_sgd,period=3",
    "fedpaq": "fedpaq,period=3",
    "pulseloco": "pulseloco,period=3",
    "post_local_sgd": "post_local_sgd,start=2,period=2",
    "diloco": "diloco,period=3",
    "streaming_diloco": "streaming_diloco,period=4,fragments=2,tau=1",
    "sparseloco": "sparseloco,period=3",
}


def on_a_rank(rank: int) -> list[dict[str, tuple[tuple[float, ...], float, float | None]]]:
    """Two runs of every recipe: this rank's curve, the validation loss and the ratio."""
    out = []
    for _ in range(2):
        runs = {name: result(small(strategy=spoken)) for name, spoken in SPOKEN.items()}
        out.append({name: (done.curve, done.nats, done.ratio) for name, done in runs.items()})
    return out


def objectives_on_a_rank(rank: int) -> dict[str, tuple[float, float]]:
    runs = {
        name: result(small(model=model, steps=40, lr=1e-2, warmup=5))
        for name, model in MODELS.items()
    }
    return {
        name: (done.nats, sum(done.curve[:5]) / 5 - sum(done.curve[-5:]) / 5)
        for name, done in runs.items()
    }


def test_every_recipe_is_run() -> None:
    assert set(SPOKEN) == set(recipes.names())


@pytest.mark.parametrize("spoken", SPOKEN.values(), ids=list(SPOKEN))
def test_a_recipe_runs_alone(spoken: str) -> None:
    done = result(small(strategy=spoken))
    assert len(done.curve) == done.end.step == done.end.report.steps == done.setting.steps >= 6
    assert done.validation[-1][0] == done.end.step
    assert 4 < done.nats < 6.5, "near ln 257 = 5.55, where bytes are guesses"
    assert sum(done.sent_bytes) == 0
    assert done.ratio is None


@pytest.mark.parametrize("strategy", ["muloco,period=3", "dense"])
def test_muon_and_sgd_are_chosen_by_their_names(
    strategy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[torch.optim.Optimizer] = []

    def noting(
        model: torch.nn.Module, optimizer: torch.optim.Optimizer, *args: Any, **options: Any
    ) -> Syncer:
        made.append(optimizer)
        return attach(model, optimizer, *args, **options)

    monkeypatch.setattr("thinwire.train.job.attach", noting)
    runs = [
        result(small(strategy=strategy, optimizer=name, beta1=0.5))
        for name in ("auto", "muon", "sgd")
    ]
    assert [type(optimizer) for optimizer in made] == [torch.optim.AdamW, Together, torch.optim.SGD]
    assert made[2].param_groups[0]["momentum"] == 0.5
    assert len({done.curve for done in runs}) == 3
    assert all(4 < done.nats < 6.5 for done in runs)


def test_an_optimiser_that_does_not_suit_is_refused() -> None:
    with pytest.raises(
        ConfigError,
        match=r"--optimizer muon: momentum\(.* whole updates in \.grad.* take auto or sgd",
    ):
        prepare_run(small(strategy="onebit_adam,start=3", optimizer="muon"))


def test_ranks_that_rest_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "uneven.toml"
    file.write_text(Strategy(by_speed(every(4)), on=deltas()).to_toml())
    with pytest.raises(ConfigError, match="here all ranks read as many batches"):
        prepare_run(small(strategy=str(file)))


def test_a_run_is_decided_by_its_seed() -> None:
    one, two, other = (result(small(strategy="qsgd", seed=seed)) for seed in (3, 3, 4))
    assert (one.curve, one.validation, one.sample) == (two.curve, two.validation, two.sample)
    assert one.curve != other.curve


@pytest.mark.long
def test_every_recipe_runs_on_two_ranks_and_is_decided_by_its_seed() -> None:
    (first, again), (other, _) = run_ranks(2, on_a_rank, timeout=300)
    assert again == first
    for name, (curve, nats, ratio) in first.items():
        assert curve != other[name][0], "each rank reads batches of its own"
        assert nats == other[name][1], "and validates the same weights"
        assert ratio is not None
        assert (
            ratio == pytest.approx(1)
            if name in ("dense", "delayed_update", "parameter_server", "decentralised")
            else ratio > 1.1
        )


def test_every_kind_of_model_learns_on_two_ranks() -> None:
    one, two = run_ranks(2, objectives_on_a_rank)
    for name, (nats, fell) in one.items():
        assert fell > 0.3, name
        assert nats == two[name][0], name


@pytest.mark.parametrize("spoken", ["dense", "local_sgd,period=2"])
def test_accumulation_is_a_larger_batch(spoken: str) -> None:
    same = {"strategy": spoken, "warmup": 0, "decay_to": 1.0, "clip": 1e9}
    large = result(small(batch=4, steps=6, **same))
    small_ = result(small(batch=2, accumulate=2, steps=12, **same))
    assert large.end.tokens == small_.end.tokens
    assert small_.nats == pytest.approx(large.nats, rel=1e-5)


@pytest.mark.parametrize("when", [warmup(3, every(1)), every(3)])
def test_accumulation_that_cannot_be(when: Strategy) -> None:
    with pytest.raises(StrategyError, match="--accumulate 2"):
        accumulating(Strategy(when=when), 2)


def test_tokens_say_how_long() -> None:
    prepared = prepare_run(small(tokens=1000))
    assert prepared.steps(world=2) == 16  # of 2 x 2 x 16
    assert result(small(tokens=320)).end.tokens == 320


@pytest.mark.long
@pytest.mark.filterwarnings(
    "ignore:The .grad attribute of a Tensor:UserWarning"
)  # Dynamo asks for it and hides the warning itself
def test_bf16_and_compiled_blocks_learn() -> None:
    for settings in ({"precision": "bf16"}, {"compile": True}):
        curve = result(small(steps=40, lr=1e-2, warmup=5, **settings)).curve
        assert sum(curve[-5:]) / 5 < curve[0] - 0.3, settings


def test_a_run_that_diverges_says_so() -> None:
    with pytest.raises(NonFiniteError, match=r"step \d+: gradients that are not finite \(rank 0: "):
        result(small(steps=40, lr=1e30))
    with pytest.raises(FloatingPointError, match=r"take a lower --lr than 1e"):
        result(small(steps=40, lr=1e30, strategy="fedpaq,period=8"))


def test_dropout_is_drawn_by_seed_step_and_rank() -> None:
    with_it = "gpt2-nano,n_layer=1,n_head=2,n_embd=16,resid_pdrop=0.5"
    one = result(small(model=with_it))
    torch.rand(7)
    two = result(small(model=with_it))
    assert one.curve == two.curve
    assert one.curve != result(small(model="gpt2-nano,n_layer=1,n_head=2,n_embd=16")).curve


@pytest.mark.parametrize(
    ("settings", "error", "said"),
    [
        ({"strategy": "powersdg"}, StrategyError, "did you mean 'powersgd'"),
        ({"strategy": "local_sgd,period=2000"}, StrategyError, "lands nothing"),
        ({"model": "gpt3-nano"}, ModelError, "no model is called"),
        ({"objective": "masked"}, ModelError, "masked"),
        ({"data": "nowhere.txt"}, DataError, "nowhere.txt"),
        ({"tokenizer": "bytes"}, DataError, "byte"),
        ({"context": 10**7}, ConfigError, "text is too short"),
    ],
)
def test_what_cannot_be_is_refused(
    settings: dict[str, object], error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=said):
        result(small(**settings))


@pytest.mark.parametrize("seed", [0, 7, (1 << 63) - 1])
def test_dropout_draws_as_after_a_manual_seed(seed: int) -> None:
    torch.manual_seed(seed)
    wanted = torch.nn.functional.dropout(torch.ones(100))
    seed_dropout(seed, torch.device("cpu"))
    assert torch.equal(torch.nn.functional.dropout(torch.ones(100)), wanted)
