"""Live beside `torch.compile`: hooks that it leaves alone, and a model that it took whole."""

from __future__ import annotations

import gc
import sys
import warnings
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar, cast

from torch import nn
from torch._C._dynamo import eval_frame as _frames
from torch._compile import _disable_dynamo

P = ParamSpec("P")
R = TypeVar("R")
_warned: list[bool] = []  # of this process
_skipped: set[Any] = set()  # code objects
compiler: Callable[[], Any] = _frames.get_eval_frame_callback
"""Return what would look at a function of Python that is called now: within a compiled function,
where its graph breaks; else `None`. It is a function of C, so that nothing looks at it."""


def untraced(call: Callable[P, R]) -> Callable[P, R]:
    """Return a function that `torch.compile` calls as it stands, with all that it calls.

    It is for hooks of modules, parameters and optimisers, which else would become part of a graph:
    threads, clocks and collectives with them. A call costs 1 µs more.

    Example:
        >>> @untraced
        ... def hook(x):
        ...     return x + 1
        >>> hook(1)
        2
    """
    # Not `torch.compiler.disable`, which imports the compiler when this module is imported.
    return cast(Callable[P, R], _disable_dynamo(call))


def skipped(call: Callable[P, R]) -> Callable[P, R]:
    """Return a function of which `torch.compile` leaves the body alone, but not what it calls.

    For hooks of which there are thousands: a call costs nothing, where `untraced` costs several
    microseconds in the midst of other work. Such a hook asks first whether `compiler() is None`;
    if it is not, the hook calls nothing but what is `untraced`.

    Example:
        >>> @skipped
        ... def hook(x):
        ...     return x + 1
        >>> hook(1)
        2
    """
    code: Any = call.__code__
    if code in _skipped:
        return call
    if hasattr(_frames, "set_code_exec_strategy"):
        skip = _frames._FrameAction.SKIP
        default = _frames._FrameAction.DEFAULT
        _frames.set_code_exec_strategy(code, _frames._FrameExecStrategy(skip, default))
    elif hasattr(_frames, "skip_code"):  # torch 2.6
        _frames.skip_code(code)
    else:
        return untraced(call)
    _skipped.add(code)
    return call


def is_compiled(module: nn.Module) -> bool:
    """Return whether `torch.compile(module)` made it, or `module.compile()` was called.

    Example:
        >>> is_compiled(nn.Linear(1, 1))
        False
    """
    in_place = getattr(module, "_compiled_call_impl", None) is not None
    return in_place or hasattr(module, "_orig_mod")


def warn_if_whole(model: nn.Module, ddp: nn.Module | None) -> None:
    """Warn, once a process, where a whole model is compiled, so that nothing overlaps.

    Then all gradients come at the end of backward. It may look at every object of the process: call
    it once a syncer, when the first forward pass is over.

    Args:
        model: what is attached.
        ddp: the DDP module around it, where there is one.
    """
    if _warned or (ddp is not None and _splits_by_bucket()):
        return
    held = [module for module in (model, ddp) if module is not None]
    if not any(is_compiled(module) or _has_compiled_wrapper(module) for module in held):
        return
    _warned.append(True)
    cure = "compile block by block: `for block in model.blocks: block.compile()`"
    if ddp is not None:
        cure += ", or leave torch._dynamo.config.optimize_ddp on"
    warnings.warn(
        "the whole model is compiled: its gradients come all at once when backward ends, so no "
        f"bucket flies while it runs. Results are the same. To overlap, {cure}",
        stacklevel=2,
    )


def _splits_by_bucket() -> bool:
    """Return whether `torch.compile` cuts the graph of a model in DDP at DDP's buckets."""
    config: Any = getattr(sys.modules.get("torch._dynamo"), "config", None)
    return bool(getattr(config, "optimize_ddp", False))


def _has_compiled_wrapper(module: nn.Module) -> bool:
    """Return whether a living result of `torch.compile` wraps the module, which does not know."""
    # 1. Nothing has been compiled yet: the usual case, and no search.
    utils: Any = sys.modules.get("torch._dynamo.utils")
    if utils is None or not utils.counters["frames"]:
        return False
    # 2. The wrapper holds the module in its table of submodules.
    return any(
        isinstance(each, dict) and each.get("_orig_mod") is module
        for each in gc.get_referrers(module)
    )
