"""The facts of a saved state: what it is refused for is in test_checkpoint.py."""

from __future__ import annotations

import pytest

import thinwire
from tests.engine.models import mlp, sgd_of
from thinwire import Strategy
from thinwire.engine.saved_facts import facts_of, hash_json, must_fit
from thinwire.errors import CheckpointError
from thinwire.how import gather
from thinwire.what import feedback, topk


def test_a_hash_is_of_what_is_written() -> None:
    assert hash_json([1, "a"]) == hash_json((1, "a"))
    assert hash_json([1]) != hash_json(["1"])


def test_facts_fit_their_own_syncer_alone() -> None:
    model = mlp()
    strategy = Strategy(what=feedback(topk(4, 32)), how=gather())
    with thinwire.attach(model, sgd_of(model), strategy) as sync:
        facts = facts_of(sync)
        must_fit(sync, facts)
        for key, value, why in (
            ("format", 0, "has format 0"),
            ("model", hash_json([]), "of another model"),
            ("seed", 1, "drawn with seed=1"),
        ):
            with pytest.raises(CheckpointError, match=why):
                must_fit(sync, {**facts, key: value})
    other = mlp()
    with (
        thinwire.attach(other, sgd_of(other), Strategy()) as sync,
        pytest.raises(CheckpointError, match="another strategy"),
    ):
        must_fit(sync, facts)
