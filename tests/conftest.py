"""Settings of all tests: examples that hypothesis draws, one thread a process, and signals; and a
process group of one."""

import gc
import os
from collections.abc import Iterator
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
from hypothesis import settings

import tests.interpreter  # noqa: F401  (before any test makes an optimiser, whichever tests are run)
from tests.signals import take_interrupts

take_interrupts()  # before any test starts a process

torch.set_num_threads(1)  # test workers and ranks already fill the cores

settings.register_profile("quick", deadline=None, max_examples=30)
settings.register_profile("ci", deadline=None, max_examples=100, derandomize=True)
settings.register_profile("check", deadline=None, max_examples=10)
settings.load_profile(
    os.environ.get("HYPOTHESIS_PROFILE", "ci" if os.environ.get("CI") else "quick")
)

FIRST = (  # the longest, so that none of them is what the end waits for
    "tests/bench/test_study.py",
    "tests/train/test_job.py",
    "tests/cli/test_train.py",
    "tests/kernels/test_fuzz.py",
    "tests/test_adding_a_codec.py",
    "tests/test_adding_a_route.py",
    "tests/test_examples.py",
    "tests/train/test_resume.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    order = {name: place for place, name in enumerate(FIRST)}
    items.sort(key=lambda item: order.get(item.nodeid.partition("::")[0], len(FIRST)))


def pytest_collection_finish() -> None:
    """Leave what is loaded and collected out of every later collection of garbage: it lives on."""
    gc.collect()
    gc.freeze()


def pytest_unconfigure() -> None:
    """Give the loaded back to the end of the process, or extension modules report leaks."""
    gc.unfreeze()


@pytest.fixture(scope="module")
def group() -> Iterator[None]:
    """A process group of this process alone, which DDP and FSDP ask for."""
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    dist.init_process_group(
        "gloo", store=store, rank=0, world_size=1, timeout=timedelta(seconds=20)
    )
    yield
    dist.destroy_process_group()
