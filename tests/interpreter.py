"""Importing this makes Triton an interpreter in this process, where there is no GPU.

It must come before an optimiser is made, for torch then imports Triton as a compiler.
"""

import importlib.util

import torch

from thinwire.kernels import gpu

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
if DEVICE == "cpu" and importlib.util.find_spec("triton") is not None:
    with gpu.interpreted():
        pass
