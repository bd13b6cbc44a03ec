"""Give each rank as many local steps of a round as its speed allows, so that none waits at its end.

With H the inner schedule's period and v_k the steps a second of rank k over the last round:
    1. rank k takes n_k = round(H · v_k / max v) of each H steps, at least 1, spread evenly; at the
       others it rests
    2. in a mean it weighs its steps since the last launch, times its weight a step (its batch)
    3. at every launch of the first bucket that is not dense the ranks exchange their speeds, which
       hold from its landing on
The clock is common: a step of rest is a step.

Source: dynamic local updates, Liu et al. 2024, "Asynchronous local-SGD training for language
modeling", arXiv:2401.09135; weights by work, as in FedAvg, McMahan et al. 2017, arXiv:1602.05629.
Differs from the paper: rounds stay synchronous, and steps are rounded to the nearest, not down.
"""

from __future__ import annotations

from dataclasses import dataclass

from thinwire.core import Schedule
from thinwire.core.component import inside
from thinwire.errors import StrategyError
from thinwire.when._around import Around
from thinwire.when.every import every


@dataclass(frozen=True)
class by_speed(Around):
    """Follow the ticks of `inner` and let slower ranks rest at some steps.

    It must be the outermost schedule, on a target whose step is an optimiser step.

    Args:
        inner: the schedule, of a period of at least 2 steps.

    Raises:
        StrategyError: a period of 1 step, or a phase within. With a strategy: another schedule
            around it, a target whose step is a backward pass, or a route without consensus.

    A loop asks whether its rank rests, and skips the step:

        for step in range(steps):
            if sync.rests():
                sync.skip_step()
                continue
            ...

    Example:
        >>> from thinwire.when import every
        >>> schedule = by_speed(every(4))
        >>> [step for step in range(4) if schedule.works(step, 3)]
        [1, 2, 3]
        >>> [step for step in range(8) if schedule.works(step, 1)]
        [3, 7]
    """

    inner: Schedule

    def __post_init__(self) -> None:
        if self.inner.period < 2:
            raise StrategyError(
                f"by_speed({self.inner!r}): a period of 1 step cannot be divided by speed; "
                "take a longer one"
            )
        if any(
            isinstance(component, every) and component.phase is not None
            for component in inside(self.inner)
        ):
            raise StrategyError(
                f"by_speed({self.inner!r}): all ranks take the last step of a period, and a "
                "phase launches at another; leave phase out"
            )
        if self.inner.skips_steps:
            raise StrategyError(f"by_speed({self.inner!r}): it is by speed already")

    @property
    def skips_steps(self) -> bool:
        return True

    def works(self, step: int, steps: int) -> bool:
        """Return whether a rank that takes `steps` of each period takes this one.

        All ranks take the last step of each period, counted from 0.
        """
        # Step t is taken where floor(t n / H) grows: n steps of each H, spread evenly, the last
        # always.
        return (step + 1) * steps // self.period > step * steps // self.period
