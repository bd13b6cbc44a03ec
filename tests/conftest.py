"""Settings of all tests: examples that hypothesis draws, one thread a process, and signals."""

import os

import torch
from hypothesis import settings

import tests.interpreter  # noqa: F401  (before any test makes an optimiser, whichever tests are run)
from tests.signals import take_interrupts

take_interrupts()  # before any test starts a process

torch.set_num_threads(1)  # test workers and ranks already fill the cores

settings.register_profile("quick", deadline=None, max_examples=50)
settings.register_profile("ci", deadline=None, max_examples=100, derandomize=True)
settings.load_profile(
    os.environ.get("HYPOTHESIS_PROFILE", "ci" if os.environ.get("CI") else "quick")
)
