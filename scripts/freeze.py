"""Freeze what later versions of Thinwire must still read; entries that exist are never changed.

    python scripts/freeze.py defaults      the first released default of every setting
    python scripts/freeze.py payloads      the payload bytes of every codec's examples
    python scripts/freeze.py checkpoints   a saved state of two ranks under every recipe

`tests/test_frozen.py` reads them for ever after. A setting, a codec or a recipe that is new gets an
entry by a run of this script; to change an old entry is to break saved state or mixed versions.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import inspect
import json
import lzma
import os
import subprocess
import sys
import threading
import typing
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn

import thinwire
from thinwire import how, on, recipes, what, when
from thinwire.core import Part, RankContext, Spec
from thinwire.core.component import Component, components
from thinwire.drive.local import Fabric
from thinwire.strategy import Strategy
from thinwire.strategy.fingerprint import as_plain, first_default
from thinwire.strategy.reading import spelled
from thinwire.testing.rounds import run_rounds

FROZEN = Path(__file__).parents[1] / "tests" / "frozen"
DEFAULTS = FROZEN / "defaults.json"
PAYLOADS = FROZEN / "payloads.json"
CHECKPOINTS = FROZEN / "checkpoints"
REQUIRED = "required"

# -- defaults


def defaults() -> dict[str, dict[str, Any]]:
    """The first released default of every setting, by "kind name" and setting."""
    kinds = {package.__name__.rpartition(".")[2] for package in (how, on, what, when)} | {"outer"}
    classes = {
        f"{kind} {name}": cls
        for kind in kinds
        for name, cls in components(kind).items()
        if cls.__module__.startswith("thinwire.")
    }
    return {name: defaults_of(cls) for name, cls in sorted(classes.items())}


def defaults_of(cls: type[Component]) -> dict[str, Any]:
    """The first released default of every setting of a class, as a table holds it."""
    hints = typing.get_type_hints(cls)
    found = {field: first_default(field) for field in dataclasses.fields(cls)}  # type: ignore[arg-type]  # components are dataclasses
    return {
        field.name: {REQUIRED: True}
        if default is dataclasses.MISSING
        else as_plain(default, hints[field.name])
        for field, default in found.items()
    }


# -- payloads

PARTS = (
    Part("table.weight", (12, 8), 0, "embedding"),
    Part("layer.weight", (16, 24), 96, "matrix"),
    Part("layer.bias", (24,), 480, "vector"),
)
SPEC = Spec(PARTS, 0, 504, torch.float32)
RANKS = (0, 1)
STEPS = 3
INEXACT = {"als", "alternating", "cp", "dct", "lowrank", "svd", "tensortrain", "tucker"}
"""Codecs of matrix products and factorisations, whose last bits are the machine's."""


def values(rank: int, step: int) -> Tensor:
    """Heavy-tailed values that are the same bits on every machine: (504,) float32."""
    generator = torch.Generator().manual_seed(1000 * step + rank)
    mantissa = torch.randint(-(1 << 20), 1 << 20, (SPEC.numel,), generator=generator)
    exponent = torch.randint(0, 9, (SPEC.numel,), generator=generator)
    return mantissa.float() * torch.pow(2.0, -20.0 - exponent.float())


def payloads_of(code: str) -> dict[str, Any]:
    """The bytes that two ranks send in three flights, as a hash, and what they decode to.

    Returns:
        "sha256" and "nbytes" of all payloads in order, and "decoded": every 21st value of the last
        flight's sum.
    """
    codec = spelled("what", code)
    states = {rank: codec.init(SPEC, RankContext(rank, RANKS, 0, 7)) for rank in RANKS}
    sent = []
    total = torch.zeros(0)
    for step in range(STEPS):
        contexts = {rank: RankContext(rank, RANKS, step, 7) for rank in RANKS}
        xs = {rank: values(rank, step) for rank in RANKS}
        flight = run_rounds(codec, xs, SPEC, states, contexts, code)
        sent += [
            payload.numpy().tobytes()
            for of_rank in flight.payloads
            for _, payload in sorted(of_rank.items())
        ]
        total = flight.outcomes[0].total
    return {
        "sha256": hashlib.sha256(b"".join(sent)).hexdigest(),
        "nbytes": sum(map(len, sent)),
        "decoded": [float(f"{value:.6g}") for value in total[::21].tolist()],
    }


def payloads() -> dict[str, Any]:
    """The frozen entry of every example of every codec; bytes only where they are exact."""
    here = {code: payloads_of(code) for code in codes()}
    elsewhere = [_in_another_process(each) for each in MACHINES]
    out = {}
    for code, entry in here.items():
        exact = all(other[code]["sha256"] == entry["sha256"] for other in elsewhere)
        out[code] = entry if exact and not _inexact(code) else {"decoded": entry["decoded"]}
    return out


def codes() -> list[str]:
    """The code of every example of every exported codec."""
    classes = [getattr(what, name) for name in what.__all__]
    return [
        repr(spelled("what", code))
        for cls in classes
        if not inspect.isabstract(cls)
        for code in cls.examples
    ]


MACHINES: tuple[dict[str, str], ...] = (
    {"ATEN_CPU_CAPABILITY": "default", "THINWIRE_KERNELS": "torch"},
    {"ATEN_CPU_CAPABILITY": "avx2", "THINWIRE_KERNELS": "torch"},
    {"THINWIRE_KERNELS": "baseline", "OMP_NUM_THREADS": "1"},
)
"""Other instruction sets, on which payloads must have the same bytes to be frozen as bytes."""


def _in_another_process(environment: dict[str, str]) -> dict[str, Any]:
    code = (
        "import json, scripts.freeze as f; "
        "print(json.dumps({c: f.payloads_of(c) for c in f.codes()}))"
    )
    run = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environment, "PYTHONPATH": str(FROZEN.parents[1])},
        capture_output=True,
        text=True,
        check=True,
    )
    made: dict[str, Any] = json.loads(run.stdout.splitlines()[-1])
    return made


def _inexact(code: str) -> bool:
    from thinwire.core.component import inside

    return any(type(each).__name__ in INEXACT for each in inside(spelled("what", code)))


# -- checkpoints

SETTINGS: dict[str, dict[str, Any]] = {
    "powersgd": {"rank": 1},
    "topk_sgd": {"fraction": 0.1},
    "dgc_sgd": {"fraction": 0.1},
    "demo": {"size": 4, "k": 2},
    "onebit_adam": {"start": 2},
    "zero_one_adam": {"until": 3},
    "two_level": {"node": 1},
    "local_sgd": {"period": 2},
    "fedpaq": {"period": 2},
    "post_local_sgd": {"start": 1, "period": 2},
    "stl_sgd": {"rounds": 1},
    "noloco": {"period": 2},
    "diloco": {"period": 2},
    "eager_diloco": {"period": 3, "tau": 1},
    "streaming_diloco": {"period": 4, "fragments": 2, "tau": 1},
    "intellect1": {"period": 2},
    "muloco": {"period": 2},
    "sparseloco": {"period": 2, "k": 4, "per": 16},
    "accumulation": {"passes": 2},
    "for_link": {"gbits": 1.0},
    "pulseloco": {"period": 2},
}
SAVED_AFTER = 6


class Tiny(nn.Module):
    """83 parameters of every role, with the same bits on every machine."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.middle, self.last = nn.Embedding(8, 4), nn.Linear(4, 6), nn.Linear(6, 3)
        with torch.no_grad():
            for i, param in enumerate(self.parameters()):
                param.copy_(torch.arange(param.numel()).view_as(param) * (i + 3) % 17 / 32 - 0.25)

    def forward(self, tokens: Tensor) -> Tensor:
        out: Tensor = self.last(torch.tanh(self.middle(self.table(tokens))))
        return out


def attached(strategy: Strategy, driver: Any) -> tuple[Tiny, torch.optim.Optimizer, Any]:
    """A tiny model, its optimiser, and the syncer, with several buckets."""
    model = Tiny()
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    sync = thinwire.attach(model, optimizer, strategy, bucket_bytes=150, driver=driver)
    return model, optimizer, sync


def step(model: Tiny, optimizer: torch.optim.Optimizer, sync: Any, rank: int, number: int) -> None:
    """One step of training on tokens of this rank; several backward passes where these are
    accumulated."""
    optimizer.zero_grad()
    for turn in range(100):
        tokens = (torch.arange(5) * (number + turn + 2) + rank) % 8
        model(tokens).square().sum().backward()
        if not sync.accumulating:
            break
    optimizer.step()


def saved_state(strategy: Strategy) -> dict[str, Tensor]:
    """What two ranks save after some steps, merged; the model's weights under "model.NAME"."""
    fabric, states = Fabric(len(RANKS)), {}

    def work(rank: int) -> None:
        torch.set_num_threads(1)
        model, optimizer, sync = attached(strategy, fabric.driver(rank))
        with sync:
            for number in range(SAVED_AFTER):
                step(model, optimizer, sync, rank, number)
            states[rank] = sync.state_dict() | {
                f"model.{name}": value.detach().clone()
                for name, value in model.state_dict().items()
                if rank == 0
            }

    threads = [threading.Thread(target=work, args=(rank,)) for rank in RANKS]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return {key: value for rank in RANKS for key, value in states[rank].items()}


def freeze_checkpoints() -> list[str]:
    """Write a file for each recipe that has none."""
    CHECKPOINTS.mkdir(parents=True, exist_ok=True)
    for name, make in recipes.names().items():
        path = CHECKPOINTS / f"{name}.{thinwire.__version__}.xz"
        if not any(CHECKPOINTS.glob(f"{name}.*.xz")):
            state = saved_state(make(**SETTINGS.get(name, {})))
            path.write_bytes(
                lzma.compress(save({key: value.contiguous() for key, value in state.items()}))
            )
    return []


# -- files


def merge(path: Path, made: dict[str, Any]) -> list[str]:
    """Add entries that the file lacks.

    Returns:
        The names of entries that the file holds with another value: they stay as they are.
    """
    held = json.loads(path.read_text()) if path.exists() else {}
    refused = []
    for name, value in made.items():
        if path == DEFAULTS and name in held:
            refused += [
                f"{name}.{key}" for key in value if held[name].get(key, value[key]) != value[key]
            ]
            held[name] = value | held[name]
        elif held.setdefault(name, value) != value:
            refused.append(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [f" {json.dumps(name)}: {json.dumps(held[name])}" for name in sorted(held)]
    path.write_text("{\n" + ",\n".join(lines) + "\n}\n")
    return refused


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("what", choices=["defaults", "payloads", "checkpoints"])
    chosen = parser.parse_args().what
    if chosen == "checkpoints":
        refused = freeze_checkpoints()
    elif chosen == "payloads":
        refused = merge(PAYLOADS, payloads())
    else:
        refused = merge(DEFAULTS, defaults())
    if refused:
        sys.exit(f"these are frozen with other values, and stay: {', '.join(refused)}")


if __name__ == "__main__":
    main()
