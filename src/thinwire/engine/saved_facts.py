"""Write the facts of a saved state, by which it is known what it is of, and compare them."""

from __future__ import annotations

import hashlib
import json
import warnings
from typing import Any

from thinwire.engine.layout import COMPILED
from thinwire.engine.resumable import Resumable
from thinwire.errors import CheckpointError
from thinwire.strategy.identity import SavedStrategy, identity, read_identity

FORMAT = 1


def facts_of(sync: Resumable) -> dict[str, Any]:
    """Return the facts of a state, equal on every rank that saves it."""
    session = sync.session
    return {
        "format": FORMAT,
        "world": session.driver.world,
        "step": sync.clock.step,
        "apart": sync.clock.steps_since_sync,
        "shares": list(sync.weights.fractions),
        "weighed": sync.weights.from_ranks,
        "air_silent": [
            [[b.names[i] for i in sorted(air.silent)] for air in b.air] for b in session.buckets
        ],
        "seed": session.options.seed,
        "cut": _hash_of_cut(sync),
        **identity(session.strategy),
        "model": _hash_of_model(sync),
        "layout": _hash_of_layout(sync),
        "pace": sync.pace.state() if sync.pace is not None else None,
        "air": [[air.step for air in bucket.air] for bucket in session.buckets],
    }


def hash_json(value: Any) -> str:
    """Hash what can be written as JSON."""
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()


def _hash_of_cut(sync: Resumable) -> str:
    """Hash where slices end; of shards, whose slices differ from rank to rank, all that decides
    it."""
    session = sync.session
    if session.replica.ranks == 1:
        return hash_json([(b.names, [part.spec.end for part in b.slices]) for b in session.buckets])
    sizes = [(b.names, [tuple(param.shape) for param in b.params]) for b in session.buckets]
    return hash_json([sizes, session.replica.ranks, sync.flights.bound.lane_plan.slice_bytes])


def _hash_of_model(sync: Resumable, before: str = "") -> str:
    return hash_json(
        sorted(
            (before + name, tuple(param.shape))
            for bucket in sync.session.buckets
            for name, param in zip(bucket.names, bucket.params, strict=True)
        )
    )


def _hash_of_layout(sync: Resumable, before: str = "") -> str:
    return hash_json([[before + name for name in bucket.names] for bucket in sync.session.buckets])


def must_fit(sync: Resumable, meta: dict[str, Any]) -> None:
    """Refuse a state that is not of this model and strategy.

    Raises:
        CheckpointError: it is of another.
    """
    own = facts_of(sync)
    if meta["format"] != FORMAT:
        raise CheckpointError(
            f"the state has format {meta['format']!r}, this version of thinwire reads {FORMAT}. "
            f"It was saved by thinwire {meta.get('thinwire', 'of another version')}: read it "
            "with that"
        )
    if meta["model"] not in (
        own["model"],
        _hash_of_model(sync, COMPILED),
    ):  # the latter is of earlier versions
        raise CheckpointError(
            "the state is of another model: names or shapes of the parameters that train differ"
        )
    saved = read_identity(meta, "the state")
    if not saved.is_of(sync.session.strategy):
        _must_be_another_period(sync, meta, saved)
    if meta["seed"] != own["seed"]:
        raise CheckpointError(
            f"the state was drawn with seed={meta['seed']}, attached is seed={own['seed']}: "
            "attach with the seed it was saved with"
        )
    bound = any(meta["air"]) or sync.session.strategy.when.fragments > 1
    if bound and meta["layout"] not in (own["layout"], _hash_of_layout(sync, COMPILED)):
        raise CheckpointError(
            "the state holds flights or fragments of another bucket layout: attach with the "
            "bucket_bytes it was saved with"
        )


def _must_be_another_period(sync: Resumable, meta: dict[str, Any], saved: SavedStrategy) -> None:
    """Let local steps go on under another schedule, with a warning; raise where anything else
    differs, or a flight is in the air.

    The clock stays: every step counts as it would have from the start under the new schedule.
    """
    both = f"\n  saved:    {saved.code}\n  attached: {sync.session.strategy!r}"
    if not saved.differs_in_schedule_alone(sync.session.strategy):
        raise CheckpointError(f"the state is of another strategy.{both}")
    if any(meta["air"]) or sync.session.strategy.when.fragments > 1 or saved.fragments > 1:
        raise CheckpointError(
            "the state holds flights or fragments of another schedule: go on with the one it was "
            "saved with, or save when nothing is in "
            f"the air.{both}"
        )
    warnings.warn(
        (
            f"the state was saved under {saved.when_code} and goes on under "
            f"{sync.session.strategy.when!r}, counted from step {meta['step']}"
        ),
        stacklevel=5,
    )
