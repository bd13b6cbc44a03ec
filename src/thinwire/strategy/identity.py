"""Write the identity of a strategy into saved state, and read it back to compare.

Identities are fingerprints; the code that prints the strategy is saved beside them, for messages.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from thinwire.errors import CheckpointError, StrategyError
from thinwire.strategy.fingerprint import fingerprint, must_be_known
from thinwire.strategy.strategy import Strategy
from thinwire.version import __version__

_SLOTS = ("when", "what", "how", "on")
_NEW = {"place=": "device=", "tucker(share=": "tucker(fraction="}
"""Settings that have other names since; codes of before are read under the new ones."""
_RENAMED = re.compile("|".join(map(re.escape, _NEW)))
_BEFORE = "0.1.0"
"""The last version that identified saved state by the text of its strategy alone."""


@dataclass(frozen=True)
class SavedStrategy:
    """The strategy of a saved state.

    code, when_code: the strategy and its schedule as they print.
    fingerprints: of the strategy ("strategy") and of what fills each slot ("when", …).
    fragments: how many groups of buckets the schedule launches by turns.
    """

    code: str
    when_code: str
    fingerprints: Mapping[str, str]
    fragments: int

    def is_of(self, strategy: Strategy) -> bool:
        """Return whether it is the same strategy."""
        return self.fingerprints["strategy"] == fingerprint(strategy)

    def differs_in_schedule_alone(self, strategy: Strategy) -> bool:
        """Return whether both take the same local steps, under two schedules."""
        differing = [
            slot
            for slot in _SLOTS
            if self.fingerprints[slot] != fingerprint(getattr(strategy, slot))
        ]
        return strategy.on.clock == "step" and differing == ["when"]


def identity(strategy: Strategy) -> dict[str, Any]:
    """Return what saved state keeps of its strategy, as JSON holds it.

    Example:
        >>> read_identity(identity(Strategy()), "the state").is_of(Strategy())
        True
    """
    return {
        "thinwire": __version__,
        "strategy": repr(strategy),
        "when": repr(strategy.when),
        "fingerprints": _fingerprints(strategy),
        "fragments": strategy.when.fragments,
    }


def read_identity(saved: Mapping[str, Any], where: str) -> SavedStrategy:
    """Read what `identity` wrote, or what versions before it wrote, which is the code alone.

    Args:
        saved: the facts of the saved state.
        where: what holds it, to begin messages with.

    Raises:
        CheckpointError: its fingerprints have a format that this version does not read, or its code
            is of components that this version does not have.
    """
    code, prints = str(saved.get("strategy")), saved.get("fingerprints")
    version = str(saved.get("thinwire", _BEFORE))
    # Fingerprints decide; the code is for messages.
    if prints is not None:
        if not isinstance(prints, Mapping) or not set(prints) >= {"strategy", *_SLOTS}:
            raise CheckpointError(f"{where} names no strategy: {str(prints)[:60]!r}")
        for each in prints.values():
            must_be_known(each, where, version)
        return SavedStrategy(code, str(saved.get("when")), prints, int(saved.get("fragments", 1)))
    # 1. earlier versions saved the code alone: build the strategy again, and take its fingerprints
    try:
        strategy = Strategy.from_code(_RENAMED.sub(lambda match: _NEW[match[0]], code))
    except (StrategyError, RecursionError, MemoryError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(
            f"{where} was saved by thinwire {version} under a strategy that {__version__} cannot "
            f"build ({reason}): {code[:300]}. Read it with thinwire {version}"
        ) from error
    return SavedStrategy(
        code, repr(strategy.when), _fingerprints(strategy), strategy.when.fragments
    )


def _fingerprints(strategy: Strategy) -> dict[str, str]:
    return {
        "strategy": fingerprint(strategy),
        **{slot: fingerprint(getattr(strategy, slot)) for slot in _SLOTS},
    }
