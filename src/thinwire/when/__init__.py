"""When to talk: schedules, pure in the step.

`every(8)` is gradient accumulation on gradients and local SGD on parameters; `delayed(1, every(1))` is the delayed update;
`delayed(5, staggered(4, every(100)))` on deltas is Streaming DiLoCo's clock.
"""

from thinwire.when.delayed import delayed
from thinwire.when.every import every
from thinwire.when.staggered import staggered
from thinwire.when.warmup import warmup

__all__ = ["delayed", "every", "staggered", "warmup"]
