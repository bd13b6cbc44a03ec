"""Join one value of each in a strategy: when to talk, what to send, how to carry it, on which
tensors.

Every method of the literature is a row, not a program:

    plain data parallel   Strategy()
    local SGD             Strategy(when=every(16), on=parameters())
    PowerSGD              Strategy(what=feedback(lowrank(4)))
    DiLoCo                Strategy(when=every(100), on=deltas(outer=nesterov(0.7, 0.9)))

What cannot be honoured is refused here, when the strategy is made, and not at step 4000.
"""

from __future__ import annotations

import dataclasses
import difflib
import tomllib
from dataclasses import dataclass, field
from typing import Any

from thinwire.core import Codec, Route, Schedule, Target, travel
from thinwire.core.component import from_table, to_table
from thinwire.errors import StrategyError
from thinwire.how import native
from thinwire.on import gradients
from thinwire.strategy.fingerprint import settings
from thinwire.strategy.reading import read_call
from thinwire.what import identity
from thinwire.when import every

_SLOTS: dict[str, type] = {"when": Schedule, "what": Codec, "how": Route, "on": Target}


@dataclass(frozen=True)
class Strategy:
    """when × what × how × on, checked against one another.

    Args:
        when: a schedule, such as `every(1)`.
        what: a codec, such as `feedback(topk(0.01))`.
        how: a route, such as `gather()`.
        on: a target, such as `gradients()`.

    Raises:
        StrategyError: a slot holds something else, or two slots do not fit; all reasons at once,
            each with what to do.

    Example:
        >>> Strategy(when=every(4))
        Strategy(when=every(n=4), what=identity(), how=native(), on=gradients(reduce='mean'))
        >>> Strategy.from_toml(Strategy(when=every(4)).to_toml()) == Strategy(when=every(4))
        True
    """

    when: Schedule = field(default_factory=every)
    what: Codec = field(default_factory=identity)
    how: Route = field(default_factory=native)
    on: Target = field(default_factory=gradients)

    def __post_init__(self) -> None:
        reasons = []
        for slot, cls in _SLOTS.items():
            value = getattr(self, slot)
            if not isinstance(value, cls):
                reasons.append(
                    f"Strategy({slot}={value!r}): this slot takes a {cls.__name__.lower()} from "
                    f"thinwire.{slot}, such as {_default(slot)!r}"
                )
        if not reasons:
            reasons = travel.refusals(self.when, self.what, self.how, self.on)
        if reasons:
            raise StrategyError(reasons)

    @property
    def adds_landed(self) -> bool:
        """A mean that has landed in `.grad` may be launched again with the next gradients: the mean
        of both is the same sum."""
        return (
            not self.what.traits.lossy
            and not self.when.delay
            and self.on.mean
            and self.on.homogeneous
            and not self.on.updates
        )

    @property
    def compares(self) -> bool:
        """After a landing ranks hold something equal, which `sync.check()` can prove."""
        return travel.equal_after_landing(self.when, self.what, self.how, self.on)

    def to_toml(self) -> str:
        """Return the strategy as TOML, every setting written out."""
        import tomli_w

        return tomli_w.dumps({slot: to_table(getattr(self, slot)) for slot in _SLOTS})

    def short(self) -> dict[str, Any]:
        """Return the settings that a fingerprint covers, as plain tables by slot.

        Example:
            >>> Strategy().short()["what"]
            {'use': 'identity'}
        """
        return {slot: settings(getattr(self, slot)) for slot in _SLOTS}

    @classmethod
    def from_toml(cls, text: str) -> Strategy:
        """Return the strategy that TOML describes; a slot that is left out has its default.

        Raises:
            StrategyError: bad TOML, unknown keys, wrong types, components that do not fit: all at
                once, each with its path.
        """
        try:
            table = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            raise StrategyError(f"not TOML: {error}") from error
        # Read every slot before any error is raised: the user gets all reasons at once.
        problems: list[str] = []
        values: dict[str, Any] = {}
        for key, value in table.items():
            if key in _SLOTS:
                values[key] = from_table(key, value, key, problems)
            else:
                near = difflib.get_close_matches(key, _SLOTS, n=1)
                problems.append(
                    f"{key}: a strategy has the slots when, what, how and "
                    f"on{f'; did you mean {near[0]!r}?' if near else ''}"
                )
        if not problems:
            try:
                return cls(**values)
            except StrategyError as error:
                problems.extend(error.reasons)
        raise StrategyError(problems)

    @classmethod
    def from_code(cls, text: str) -> Strategy:
        """Return the strategy that prints as `text`.

        Raises:
            StrategyError: it is no code of a strategy, or the components do not fit.

        Example:
            >>> Strategy.from_code(repr(Strategy(when=every(4)))) == Strategy(when=every(4))
            True
        """
        return cls(**read_call(text, cls.__name__, _SLOTS))


def _default(slot: str) -> Any:
    return next(
        f.default_factory()
        for f in dataclasses.fields(Strategy)
        if f.name == slot and callable(f.default_factory)
    )
