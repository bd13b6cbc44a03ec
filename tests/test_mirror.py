"""Each module of src/ has its test file by name: `src/thinwire/a/b.py` has `tests/a/test_b.py`."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.members import ROOT, SOURCE

TESTS = ROOT / "tests"
RIVAL = "a contestant; tests/bench/test_rivals.py reads all of them and runs those that it can"
ON_A_HOST = "a program that a lab runs in network spaces of its own: tests/lab/test_lab.py"
EXCEPTIONS = {
    "bench/rivals/ddp.py": RIVAL,
    "bench/rivals/deepspeed_zero.py": RIVAL,
    "bench/rivals/hivemind_avg.py": RIVAL,
    "bench/rivals/horovod_ring.py": RIVAL,
    "bench/rivals/local_sgd.py": RIVAL,
    "bench/rivals/post_local.py": RIVAL,
    "bench/rivals/torchft_diloco.py": RIVAL,
    "engine/resumable.py": "a protocol without code",
    "kernels/_programs.py": "Triton's programs, called through fast: tests/kernels/test_gpu.py",
    "kernels/_tiles.py": "what those programs share: tests/kernels/test_gpu.py",
    "lab/brake.py": ON_A_HOST,
    "lab/keeper.py": ON_A_HOST,
    "lab/line.py": ON_A_HOST,
    "lab/probe.py": ON_A_HOST,
    "recipes.py": "one import",
    "train/outputs.py": "two calls, whose files tests/cli/test_train.py reads",
    "version.py": "one constant",
}
MOST = 25
MODULES = sorted(
    path.relative_to(SOURCE)
    for path in SOURCE.rglob("*.py")
    if path.name not in ("__init__.py", "__main__.py")
)


def mirrored(module: Path) -> Path:
    """Return the test file of a module; a leading underscore is dropped."""
    return TESTS / module.parent / f"test_{module.stem.lstrip('_')}.py"


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_a_module_has_its_test_file_or_a_reason(module: Path) -> None:
    there = mirrored(module).exists()
    listed = str(module) in EXCEPTIONS
    assert there or listed, f"write {mirrored(module).relative_to(ROOT)}"
    assert not (there and listed), f"{module} has its tests: take it off the list"
    assert listed or "def test_" in mirrored(module).read_text(encoding="utf-8")


def test_exceptions_are_few_and_exist_and_have_their_reasons() -> None:
    assert len(EXCEPTIONS) <= MOST
    assert sorted(set(EXCEPTIONS) - {str(module) for module in MODULES}) == []
    assert all(EXCEPTIONS.values())
