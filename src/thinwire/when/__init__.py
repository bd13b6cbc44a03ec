"""Decide when to communicate: schedules, each a pure function of the step.

`every(8)` is gradient accumulation on gradients and local SGD on parameters. `delayed(1, every(1))`
is the delayed update; `delayed(5, staggered(4, every(100)))` on deltas is Streaming DiLoCo's clock.
`warmup` and `thinning` add dense steps, `growing` lengthens rounds of local steps, and `by_speed`
gives slower ranks fewer steps.
"""

from thinwire.when.by_speed import by_speed
from thinwire.when.delayed import delayed
from thinwire.when.every import every
from thinwire.when.growing import growing
from thinwire.when.staggered import staggered
from thinwire.when.thinning import thinning
from thinwire.when.warmup import warmup

__all__ = ["by_speed", "delayed", "every", "growing", "staggered", "thinning", "warmup"]
