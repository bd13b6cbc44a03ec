"""The GPU kernels equal the reference, bit for bit: on a GPU where there is one, else in Triton's
interpreter.

What the compilers make of them is looked at, too, which needs no GPU.
"""

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.interpreter import DEVICE
from tests.kernels.values import GRIDS, grids, keys, same, tensors_of, values
from thinwire.kernels import fast, gpu, native, reference
from thinwire.kernels.reference import Grid, Key

if importlib.util.find_spec("triton") is None:
    pytest.skip(
        "Triton is not installed (it is in the extra 'dev' where there are wheels of it)",
        allow_module_level=True,
    )

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.filterwarnings(
    "ignore:.*encountered in:RuntimeWarning"
)  # numpy, of infinities: the interpreter computes with it
few = settings(max_examples=12)  # an interpreted program takes some milliseconds
blocks = st.sampled_from([8, 16, 256, 1024, 4096, 0])
sizes = st.one_of(st.integers(1, 700), st.sampled_from([1023, 1024, 1025, 2048, 2500]))
tensors = tensors_of(sizes)


@contextmanager
def kernels() -> Iterator[None]:
    """Where tensors on DEVICE go to the kernels."""
    with gpu.interpreted() if DEVICE == "cpu" else nullcontext():
        yield


def agree(work: Callable[..., Sequence[Tensor]], *given: Tensor) -> None:
    """Work on the kernels' device tells what it tells in plain torch on a CPU."""
    with native.using("torch"):
        expected = work(*given)
    with kernels():
        told = work(*(each.to(DEVICE) for each in given))
    assert [same(a.cpu(), b) for a, b in zip(told, expected, strict=True)] == [True] * len(expected)


def grid_work(
    block: int, bits: int, grid: Grid, key: Key | None, decay: float
) -> Callable[..., Sequence[Tensor]]:
    """Every kernel of grids, on values, what was left before, and other values to sum with."""

    def work(x: Tensor, before: Tensor, *others: Tensor) -> Sequence[Tensor]:
        n = x.numel()
        payload = fast.grid_encode(x, block, bits, grid, key)
        total = before.clone()
        fast.grid_accumulate(total, payload, block, bits, grid)
        payloads = [payload, *(fast.grid_encode(each, block, bits, grid, None) for each in others)]
        return [
            payload,
            fast.grid_decode(payload, n, block, bits, grid, torch.float32),
            total,
            *fast.grid_encode_with_residual(x, before, decay, block, bits, grid, key),
            *fast.grid_encode_with_residual(x, before.bfloat16(), decay, block, bits, grid, key),
            fast.grid_sum_encode(payloads, n, block, bits, grid, key, torch.float32),
        ]

    return work


def sign_work(block: int, decay: float) -> Callable[..., Sequence[Tensor]]:
    """Every kernel of signs, as above."""

    def work(x: Tensor, before: Tensor, *others: Tensor) -> Sequence[Tensor]:
        n, total = x.numel(), before.clone()
        payload = fast.sign_encode(x, block)
        fast.sign_accumulate(total, payload, block)
        payloads = [payload, *(fast.sign_encode(each, block) for each in others)]
        return [
            payload,
            fast.sign_decode(payload, n, block, torch.float32),
            total,
            *fast.sign_encode_with_residual(x, before, decay, block),
            *fast.sign_encode_with_residual(x, before.bfloat16(), decay, block),
            fast.sign_sum_encode(payloads, n, block, torch.float32),
        ]

    return work


@few
@given(
    x=tensors,
    seed=st.integers(0, 99),
    block=blocks,
    grid=grids,
    key=keys,
    decay=st.sampled_from([1.0, 0.9]),
    more=st.integers(0, 3),
)
def test_grid(
    x: Tensor,
    seed: int,
    block: int,
    grid: tuple[int, Grid],
    key: Key | None,
    decay: float,
    more: int,
) -> None:
    others = [values(x.numel(), seed + i, 0.0, i % 2) for i in range(1 + more)]
    agree(grid_work(block or x.numel(), *grid, key, decay), x, *others)


@pytest.mark.parametrize(("bits", "grid"), GRIDS)
def test_every_grid(bits: int, grid: Grid) -> None:
    x = values(1101, bits, -3.0, 1)
    agree(grid_work(16, bits, grid, None if bits % 2 else (2**31, 2**32 - 1), 0.9), x, x.flip(0))


@few
@given(x=tensors, block=blocks, grid=grids, key=keys, scale=st.floats(0.01, 2.0))
def test_grid_with_steps_of_ones_own(
    x: Tensor, block: int, grid: tuple[int, Grid], key: Key | None, scale: float
) -> None:
    block = block or x.numel()
    steps = reference.block_steps(reference.to_blocks(x, block), *grid) * scale
    agree(lambda x, steps: [fast.grid_encode(x, block, *grid, key, steps)], x, steps)


@few
@given(
    x=tensors,
    seed=st.integers(0, 99),
    block=blocks,
    decay=st.sampled_from([1.0, 0.9]),
    more=st.integers(0, 3),
)
@example(x=values(4096, 1, 0.0, 0), seed=0, block=4096, decay=1.0, more=1)
@example(
    x=torch.full((700,), 3e38), seed=0, block=256, decay=0.9, more=0
)  # whose plain sum overflows
def test_sign(x: Tensor, seed: int, block: int, decay: float, more: int) -> None:
    others = [values(x.numel(), seed + i, 0.0, i % 2) for i in range(1 + more)]
    agree(sign_work(block or x.numel(), decay), x, *others)


@few
@given(x=tensors, chunks=st.integers(1, 9), share=st.floats(0, 1), rounded=st.booleans())
@example(x=torch.zeros(1000), chunks=2, share=0.1, rounded=True)
@example(x=torch.full((900,), float("nan")), chunks=3, share=1.0, rounded=False)
@example(x=values(8192, 1, 0.0, 5), chunks=1, share=0.01, rounded=False)
def test_largest(x: Tensor, chunks: int, share: float, rounded: bool) -> None:
    x = x.round() if rounded else x  # many equals
    chunks = min(chunks, x.numel())
    rows = x[: x.numel() // chunks * chunks].view(chunks, -1)
    agree(lambda rows: fast.largest(rows, max(1, int(share * rows.shape[1]))), rows)


def test_a_payload_that_lies_on_no_whole_word() -> None:
    def moved(payload: Tensor) -> Tensor:
        room = payload.new_empty(payload.numel() + 3)
        room[3:] = payload
        return room[3:]

    def work(x: Tensor) -> Sequence[Tensor]:
        grid, sign = moved(fast.grid_encode(x, 8, 3, "tread", None)), moved(fast.sign_encode(x, 8))
        return [
            fast.grid_decode(grid, 600, 8, 3, "tread", torch.float32),
            fast.sign_decode(sign, 600, 8, torch.float32),
            fast.grid_sum_encode([grid, grid], 600, 8, 3, "tread", None, torch.float32),
            fast.sign_sum_encode([sign, sign], 600, 8, torch.float32),
        ]

    agree(work, values(600, 1, 0.0, 0))


class _ReachedError(Exception):
    pass


CALLS: dict[str, Callable[[Tensor, Tensor], object]] = {
    "grid_encode": lambda x, _: fast.grid_encode(x, 8, 8, "tread", None),
    "grid_encode_with_residual": lambda x, _: fast.grid_encode_with_residual(
        x, x, 1.0, 8, 8, "tread", None
    ),
    "grid_decode": lambda _, payload: fast.grid_decode(payload, 64, 8, 8, "tread", torch.float32),
    "grid_decode added": lambda x, payload: fast.grid_accumulate(x, payload, 8, 8, "tread"),
    "grid_sum_encode": lambda _, payload: fast.grid_sum_encode(
        [payload], 64, 8, 8, "tread", None, torch.float32
    ),
    "sign_encode": lambda x, _: fast.sign_encode(x, 8),
    "sign_encode_with_residual": lambda x, _: fast.sign_encode_with_residual(x, x, 1.0, 8),
    "sign_decode": lambda _, payload: fast.sign_decode(payload, 64, 8, torch.float32),
    "sign_decode added": lambda x, payload: fast.sign_accumulate(x, payload, 8),
    "sign_sum_encode": lambda _, payload: fast.sign_sum_encode([payload], 64, 8, torch.float32),
    "largest": lambda x, _: fast.largest(x.view(8, 8), 2),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_codec_reaches_the_kernel(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def reached(*_: object) -> None:
        raise _ReachedError

    monkeypatch.setattr(gpu, name.split(maxsplit=1)[0], reached)
    x = torch.ones(64, device=DEVICE)
    with kernels(), pytest.raises(_ReachedError):
        CALLS[name](x, torch.zeros(96, dtype=torch.uint8, device=DEVICE))


@pytest.mark.parametrize(
    ("n", "block", "bits", "taken"),
    [
        (10**6, 256, 4, True),
        (10**6, 4096, 1, True),
        (10**6, 24, 8, False),
        (10**6, 8192, 8, False),
        (10**6, 2, 2, False),
        (999, 999, 3, True),
        (5000, 5000, 8, False),
        (700, 10**6, 8, True),
        (2**31, 256, 8, False),
        (0, 256, 8, False),
    ],
)
def test_what_is_taken(n: int, block: int, bits: int, taken: bool) -> None:
    assert gpu.takes(n, block, bits) is taken


@pytest.fixture
def cuda_without_triton(monkeypatch: pytest.MonkeyPatch) -> Iterator[Tensor]:
    """As much of a tensor on a GPU as is looked at."""
    monkeypatch.setattr(gpu, "find_spec", lambda _: None)
    monkeypatch.delenv(native.VARIABLE, raising=False)
    caches = (gpu.lacks, gpu._warn_once)
    for each in caches:
        each.cache_clear()
    yield cast("Tensor", SimpleNamespace(device=torch.device("cuda", 0)))
    for each in caches:
        each.cache_clear()


def test_without_triton_a_gpu_runs_plain_torch_and_says_so_once(
    cuda_without_triton: Tensor,
) -> None:
    with pytest.warns(RuntimeWarning, match=r"pip install triton.*THINWIRE_KERNELS=torch"):
        assert not gpu.serves(cuda_without_triton)
    assert not gpu.serves(cuda_without_triton)  # a second warning would be an error


def test_plain_torch_that_was_asked_for_is_nothing_to_warn_of(
    cuda_without_triton: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(native.VARIABLE, "torch")
    assert not gpu.serves(cuda_without_triton)


def test_triton_is_imported_at_first_use() -> None:
    words = (
        "import sys, torch, thinwire, thinwire.what; from thinwire.kernels import fast; "
        "fast.sign_encode(torch.ones(64), 8)"
    )
    _run("-c", f"{words}; assert 'triton' not in sys.modules")


@pytest.mark.long
@pytest.mark.skipif(
    sys.platform != "linux", reason="Triton's compilers come with its wheels for Linux"
)
@pytest.mark.parametrize("target", ["cuda", "hip"])
def test_what_is_compiled_contracts_approximates_and_flushes_nothing(
    target: str, tmp_path: Path
) -> None:
    said = json.loads(_run("-m", "tests.kernels.compiled", target, TRITON_CACHE_DIR=str(tmp_path)))
    assert said
    assert {name: wrong for name, wrong in said.items() if wrong} == {}


def _run(*words: str, **also: str) -> str:
    """Python in a process of its own, where Triton compiles."""
    settled = {**os.environ, "OMP_NUM_THREADS": "1", "TRITON_INTERPRET": "0", **also}
    done: Any = subprocess.run(
        [sys.executable, *words], cwd=ROOT, env=settled, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return str(done.stdout)


@pytest.mark.skipif(
    DEVICE == "cpu", reason="needs a CUDA or ROCm GPU: sizes that take the interpreter too long"
)
class TestLarge:
    @pytest.mark.parametrize("block", [8, 256, 4096])
    @pytest.mark.parametrize("key", [None, (2**32 - 1, 2**31)])
    @pytest.mark.parametrize(("bits", "grid"), [(3, "tread"), (4, "tread"), (8, "rise")])
    def test_grid(self, block: int, key: Key | None, bits: int, grid: Grid) -> None:
        agree(
            grid_work(block, bits, grid, key, 0.9),
            *(values(3_000_001, seed, 0.0, 3) for seed in range(4)),
        )

    @pytest.mark.parametrize("block", [8, 256, 4096])
    def test_sign(self, block: int) -> None:
        agree(sign_work(block, 0.9), *(values(3_000_001, seed, 0.0, 3) for seed in range(4)))

    @pytest.mark.parametrize("per", [64, 1000, 4096, 8192])
    @pytest.mark.parametrize("k", [1, 30, 64])
    def test_largest(self, per: int, k: int) -> None:
        agree(lambda rows: fast.largest(rows, k), values(1000 * per, per, 0.0, 9).view(1000, per))
        agree(
            lambda rows: fast.largest(rows, k),
            values(1000 * per, per, 0.0, 9).round().view(1000, per),
        )

    @pytest.mark.skipif(
        DEVICE == "cpu" or torch.cuda.mem_get_info()[0] < 40 << 30,
        reason="needs 40 GiB free on the GPU",
    )
    def test_the_most_values_that_one_call_takes(self) -> None:
        n, tail = 2**31 - 256, values(1 << 20, 0, 0.0, 3)
        x = torch.zeros(n, device=DEVICE)
        x[-tail.numel() :] = tail
        payload = fast.grid_encode(x, 256, 8, "tread", None)
        expected = reference.grid_encode(tail, 256, 8, "tread", None)
        assert same(payload[-tail.numel() :].cpu(), expected[-tail.numel() :])
        decoded = fast.grid_decode(payload, n, 256, 8, "tread", torch.float32)
        assert same(
            decoded[-tail.numel() :].cpu(),
            reference.grid_decode(expected, tail.numel(), 256, 8, "tread", torch.float32),
        )
        assert same(
            fast.sign_encode(x, 256)[-tail.numel() // 8 :].cpu(),
            reference.sign_encode(tail, 256)[-tail.numel() // 8 :],
        )
