"""Rivals that need no environment of their own, run on two ranks; the others as far as text goes;
and how their environments fail."""

from __future__ import annotations

import ast
import importlib
import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.lab.possible import why_not
from tests.members import ROOT
from tests.warm import python_elsewhere
from thinwire import Strategy
from thinwire.bench.job import Job, RankEnv
from thinwire.bench.networks import no_limits
from thinwire.bench.running import ran

RIVALS = sorted(
    path
    for path in (ROOT / "src/thinwire/bench/rivals").glob("*.py")
    if not path.stem.startswith("_")
)
WORLD, STEPS, HALF = 2, 20, 10
MODEL = {"vocab": 64, "context": 16, "layers": 1, "heads": 2, "width": 32}


def trained(folder: Path, contestant: str, settings: dict[str, Any]) -> dict[str, Any]:
    """What rank 0 tells of a short run, each rank on a host of its own."""
    text = np.cumsum(np.random.default_rng(0).integers(0, 3, 4000)) % MODEL["vocab"]
    np.save(folder / "text.npy", text.astype(np.uint8))
    path = str(folder / "text.npy")
    # No warm-up steps: the kernel's count of bytes is then that of all steps.
    job = Job(
        contestant,
        settings,
        MODEL,
        path,
        path,
        batch=2,
        steps=STEPS,
        stop=STEPS,
        validate_every=HALF,
        windows=32,
        warmup=5,
        timeout=30,
    )
    with no_limits(
        WORLD
    ).lab() as lab:  # on loopback the kernel would count what other tests send, too
        ranks, _ = ran(lab, job, python_elsewhere(folder, "net"))
    return ranks[0]


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Runs by their contestant and settings, each once."""
    if why := why_not():
        pytest.skip(why)

    @cache
    def run(contestant: str, settings: str) -> dict[str, Any]:
        return trained(tmp_path_factory.mktemp(contestant), contestant, json.loads(settings))

    return lambda contestant, **settings: run(contestant, json.dumps(settings))


def curve(run: dict[str, Any]) -> list[float]:
    return [nats for _, nats in run["validation"]]


def test_ddp_is_dense_thinwire_bit_for_bit(told: Any) -> None:
    ours = told("thinwire", strategy=Strategy().to_toml())
    ddp = told("ddp", hook="none")
    assert ddp["validation"] == ours["validation"]
    assert ddp["losses"] == ours["losses"]
    assert curve(ddp)[-1] < curve(ddp)[0]


def test_powersgd_sends_less_and_learns_nearly_the_same(told: Any) -> None:
    plain, low = (
        told("ddp", hook="none"),
        told("ddp", hook="powersgd", rank=2, start=2, bucket_mb=1000),
    )
    assert curve(low) != curve(plain)
    assert curve(low) == pytest.approx(curve(plain), rel=0.05)
    assert low["sent_bytes"] < 0.7 * plain["sent_bytes"]


def test_post_local_averaging_after_every_step_is_close_to_ddp(told: Any) -> None:
    # Not equal: AdamW's state is each rank's own.
    assert curve(told("post_local", period=1, start=0)) == pytest.approx(
        curve(told("ddp", hook="none")), rel=0.05
    )


def test_post_local_is_ddp_until_it_starts_and_then_talks_less(told: Any) -> None:
    plain, late = told("ddp", hook="none"), told("post_local", period=HALF, start=HALF)
    assert curve(late)[0] == curve(plain)[0]
    assert curve(late)[1] != curve(plain)[1]
    assert curve(late)[1] == pytest.approx(curve(plain)[1], rel=0.05)
    assert (
        late["sent_bytes"] < 0.7 * plain["sent_bytes"]
    )  # 10 gradients, 1 average, and 1 more for the last validation, of 20 gradients


@pytest.mark.parametrize(
    ("contestant", "settings", "complaint"),
    [
        ("post_local", {"period": 0, "start": 0}, "period=0"),
        ("local_sgd", {"period": 0}, "period=0"),
        (
            "hivemind_avg",
            {"period": 1, "compression": "4bit"},
            "no compression '4bit': none, float16, 8bit",
        ),
        ("horovod_ring", {"compression": "bf16"}, "no compression 'bf16': none, fp16"),
        ("deepspeed_zero", {"stage": 4}, "no stage 4: 1, 2, 3"),
        ("torchft_diloco", {"period": 4, "lr": 1.0, "fragments": 2}, "fragments=2"),
    ],
)
def test_an_unknown_setting_is_refused_before_anything_starts(
    contestant: str, settings: dict[str, Any], complaint: str
) -> None:
    rival = importlib.import_module(f"thinwire.bench.rivals.{contestant}")
    with pytest.raises(ValueError, match=complaint):
        rival.build(Job(contestant, settings, MODEL, "", ""), RankEnv(0, 1, "127.0.0.1", 1))


@pytest.mark.parametrize("path", RIVALS, ids=lambda path: path.stem)
def test_a_rival_tells_what_it_is_and_what_it_needs(path: Path) -> None:
    tree = ast.parse(path.read_text())
    assigned = {
        target.id: node.value
        for node in tree.body
        if isinstance(node, ast.Assign | ast.AnnAssign)
        for target in (node.targets if isinstance(node, ast.Assign) else [node.target])
        if isinstance(target, ast.Name)
    }
    assert isinstance(ast.literal_eval(assigned["ABOUT"]), str)
    requires = ast.literal_eval(assigned["REQUIRES"])
    assert isinstance(requires, tuple)
    assert all(
        "==" in word for line in requires for word in line.split() if not word.startswith("--")
    )
    (build,) = (
        node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "build"
    )
    assert [arg.arg for arg in build.args.args] == ["job", "rank_env"]
