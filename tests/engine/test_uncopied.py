"""A copy of a module has hooks that do nothing."""

from __future__ import annotations

import copy
import pickle

import torch
from torch import nn

from thinwire.engine.uncopied import Uncopied


def test_only_the_module_itself_calls() -> None:
    module, called = nn.Linear(2, 2), []
    module.register_forward_pre_hook(Uncopied(called.append))
    for each in (module, copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        each(torch.zeros(1, 2))
    assert called == [module]
