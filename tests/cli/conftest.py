"""What several test files of this folder share."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from thinwire.train.strategy_argument import strategy_from
from thinwire.version import __version__

NUMEL, STEPS, WORLD = 1000, 40, 2


def a_run(
    strategy: str = "dense", nats: float = 2.0, sent: float = 4e3 * STEPS, **config: Any
) -> dict[str, Any]:
    """What run.json holds after a small run."""
    said = {
        "model": "gpt2-nano",
        "data": "bundled",
        "tokenizer": "auto",
        "strategy": strategy,
        "seed": 0,
        "context": 8,
        "batch": 2,
        "accumulate": 1,
    }
    return {
        "thinwire": __version__,
        "config": said | config,
        "strategy": strategy_from(strategy).to_toml(),
        "objective": "causal",
        "parameters": NUMEL,
        "world": WORLD,
        "precision": "fp32",
        "device": "cpu",
        "train_tokens": 5000,
        "result": {
            "validation_nats_per_token": nats,
            "validation_bits_per_byte": nats * 1.5,
            "steps": STEPS,
            "tokens": 1280,
            "train_s": 3.0,
            "tokens_per_s": 426.0,
            "sent_bytes": [sent] * WORLD,
            "around_bytes": [100.0] * WORLD,
            "dense_bytes": 4e3 * STEPS * WORLD,
            "ratio": 4e3 * STEPS / sent if sent else None,
            "ratio_all": 1.0,
            "time_shares": {
                "compute": 0.7,
                "exposed": 0.2,
                "input": 0.1,
                "encode": 0.0,
                "wire": 0.3,
            },
            "resumed_at": [],
            "sample": "",
        },
        "curve": {
            "train": [5 - step / STEPS for step in range(STEPS)],
            "validation": [{"step": 20, "nats": 3.0}, {"step": STEPS, "nats": nats}],
        },
        "buckets": [{"name": "bucket 0", "numel": NUMEL}],
        "places": {},
    }


def kept(folder: Path, run: dict[str, Any]) -> str:
    folder.mkdir()
    (folder / "run.json").write_text(json.dumps(run))
    return str(folder)


@pytest.fixture
def two(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.chdir(tmp_path)
    return [
        kept(tmp_path / "one", a_run()),
        kept(tmp_path / "two", a_run("diloco,period=20", 2.1, 8e3)),
    ]
