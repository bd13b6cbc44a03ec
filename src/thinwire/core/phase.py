"""Mark phases for a profile: `torch.profiler` shows each as `thinwire::…`.

    thinwire::begin    a step begins: the schedule's tick is known, gradient buffers turn
    thinwire::read     the target's contribution is read from a bucket
    thinwire::launch   a flight is put on its lane
    thinwire::encode   codec and route compute, on the lane's thread
    thinwire::wire     bytes move, on the lane's thread
    thinwire::finish   a backward pass ends: what is left is launched, and lands
    thinwire::wait     the loop waits for a flight
    thinwire::land     means of a launch are judged and put in place
    thinwire::write    the target writes a mean
    thinwire::agree    ranks exchange facts outside the schedule
    thinwire::save, thinwire::load    state to and from tensors

Lanes are threads of their own, which the profiler shows where it looks at all threads
(`experimental_config=torch.profiler._ExperimentalConfig(profile_all_threads=True)`).
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

from torch.autograd import profiler

_OFF = nullcontext()


def phase(name: str, detail: object = None) -> AbstractContextManager[Any]:
    """Mark the block as a phase of Thinwire's in a profile.

    Costs a call and a look at a flag where no profiler runs; `torch.profiler.record_function`
    itself takes several times as long then.

    Args:
        name: such as "wait"; the profile has it as "thinwire::wait".
        detail: such as a bucket's number, shown where the profiler records shapes.

    Example:
        >>> import torch
        >>> with torch.profiler.profile() as profile:
        ...     with phase("wait", 3):
        ...         _ = torch.ones(1) + 1
        >>> [event.key for event in profile.key_averages() if "thinwire" in event.key]
        ['thinwire::wait']
    """
    if not profiler._is_profiler_enabled:
        return _OFF
    return profiler.record_function(f"thinwire::{name}", None if detail is None else str(detail))
