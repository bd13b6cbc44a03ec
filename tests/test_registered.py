"""Every exported member can be found by its kind and name, as TOML names it."""

import importlib

import pytest

from tests.members import INTERFACES, concrete, files, load


@pytest.mark.parametrize("kind", INTERFACES)
def test_every_exported_member_is_registered(kind: str) -> None:
    registry = importlib.import_module("thinwire.core.component")
    members = {cls for folder, name in files() if folder == kind for cls in concrete(folder, name)}
    exported = {
        name: cls
        for name, cls in ((name, getattr(load(kind), name)) for name in load(kind).__all__)
        if cls in members
    }
    assert exported, f"{kind}/ exports no member"
    assert {
        name: registry.find(cls.kind, name) for name, cls in exported.items()
    } == exported  # outer optimisers are a kind of their own
