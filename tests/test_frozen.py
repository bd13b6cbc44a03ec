"""What earlier versions wrote is read for ever after: payload bytes, and saved state.

`scripts/freeze.py` made the files; it adds entries and never changes one. `checkpoints_by_code` is
of the version before fingerprints, which identified saved state by the text of its strategy.
"""

from __future__ import annotations

import json
import lzma
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load
from torch import Tensor

from scripts.freeze import CHECKPOINTS, FROZEN, PAYLOADS, attached, codes, payloads_of, step
from tests.threads import on_threads
from thinwire import Strategy, recipes
from thinwire.engine.packed_json import unpack_json
from thinwire.engine.saved import META
from thinwire.kernels import native

BYTES: dict[str, dict[str, Any]] = json.loads(PAYLOADS.read_text())
BY_CODE = FROZEN / "checkpoints_by_code"
SAVED = sorted([*CHECKPOINTS.glob("*.xz"), *BY_CODE.glob("*.xz")])
TOLERANCE = 1e-3
"""Of the largest value: what factorisations may differ by from machine to machine."""


@pytest.mark.parametrize("level", [native.available()[-1], "torch"])
def test_payload_bytes_are_the_frozen_ones(level: Any) -> None:
    """By the reference and by the kernels; codecs of matrix products by what they decode to."""
    wrong = []
    with native.using(level):
        for code, frozen in BYTES.items():
            made = payloads_of(code)
            if "sha256" in frozen:
                same = (made["sha256"], made["nbytes"]) == (frozen["sha256"], frozen["nbytes"])
            else:
                off = torch.tensor(made["decoded"]) - torch.tensor(frozen["decoded"])
                same = float(off.abs().max()) <= TOLERANCE
            if not same:
                wrong.append(code)
    assert not wrong


def test_every_example_of_a_codec_is_frozen() -> None:
    """A new one is added by `python scripts/freeze.py payloads`."""
    assert set(codes()) <= set(BYTES)
    assert sum("sha256" in entry for entry in BYTES.values()) > 100


def test_a_state_under_every_recipe_is_frozen() -> None:
    """A new one is added by `python scripts/freeze.py checkpoints`."""
    frozen = {path.name.partition(".")[0] for path in CHECKPOINTS.glob("*.xz")}
    assert set(recipes.names()) <= frozen


# for_link's state is of a run that is shorter than its period
@pytest.mark.filterwarnings("ignore:closed after")
@pytest.mark.parametrize("path", SAVED, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_a_frozen_state_is_read_and_goes_on(path: Path) -> None:
    """Read and saved again, it is the same bits, and training goes on from it."""
    state = load(lzma.decompress(path.read_bytes()))
    meta = unpack_json(state[META])
    strategy = Strategy.from_code(meta["strategy"])
    weights = {
        name.removeprefix("model."): value
        for name, value in state.items()
        if name.startswith("model.")
    }
    saved = {name: value for name, value in state.items() if not name.startswith("model.")}

    def work(driver: Any) -> dict[str, Tensor]:
        model, optimizer, sync = attached(strategy, driver)
        with sync:
            model.load_state_dict(weights)
            sync.load_state_dict(saved)
            again: dict[str, Tensor] = sync.state_dict()
            for number in range(meta["step"], meta["step"] + 2):
                step(model, optimizer, sync, driver.rank, number)
            assert all(bool(param.isfinite().all()) for param in model.parameters())
        return again

    states = on_threads(2, work)
    for rank, again in states.items():
        assert not isinstance(again, BaseException), again
        for name, value in again.items():
            if name != META:
                assert torch.equal(value, saved[name]), (rank, name)
    assert {name for again in states.values() for name in again} == set(saved)
