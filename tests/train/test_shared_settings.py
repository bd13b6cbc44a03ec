"""Ranks compare every setting that decides what they compute."""

import dataclasses

import pytest

from tests.train.runs import small
from thinwire.train.setup import prepare_run
from thinwire.train.shared_settings import COMPARED, configuration_digest, settings_of_all_ranks


def test_a_setting_that_differs_is_seen_by_its_name() -> None:
    prepared = prepare_run(small())
    model = prepared.model()
    here = settings_of_all_ranks(prepared, model, steps=6)
    for name in COMPARED:
        config = dataclasses.replace(prepared.config, **{name: "other"})
        there = settings_of_all_ranks(dataclasses.replace(prepared, config=config), model, steps=6)
        assert {key for key in here if here[key] != there[key]} == {name}
    assert settings_of_all_ranks(prepared, model, steps=7)["steps"] == 7


@pytest.mark.parametrize(("key", "same"), [("resid_pdrop", False), ("_name_or_path", True)])
def test_the_digest_covers_what_changes_the_model(key: str, same: bool) -> None:
    model = prepare_run(small(model="gpt2-nano")).model()
    before = configuration_digest(model)
    setattr(model.config, key, 0.37 if key == "resid_pdrop" else "elsewhere")
    assert (configuration_digest(model) == before) is same
