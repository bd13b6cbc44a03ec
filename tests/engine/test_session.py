"""A session holds the facts of one attached model, and nothing in the engine holds the syncer."""

from __future__ import annotations

import ast
import dataclasses
from pathlib import Path

import pytest
import torch
from torch import nn

import thinwire
from tests.engine.models import mlp
from thinwire.engine.session import Session
from thinwire.errors import AttachError

ENGINE = Path(__file__).parents[2] / "src" / "thinwire" / "engine"
FILES = sorted(ENGINE.rglob("*.py"))
MAY_IMPORT_SYNCER = {"attach.py", "__init__.py"}
MOST_ATTRIBUTES, MOST_LINES = 15, 400


def session_of(model: nn.Module) -> Session:
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    return thinwire.attach(model, optimizer, bucket_bytes=500).session


def test_a_session_does_not_change() -> None:
    session = session_of(mlp())
    for field in dataclasses.fields(session):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(session, field.name, None)


def test_every_parameter_is_trained_or_frozen() -> None:
    model = mlp()
    model[0].weight.requires_grad_(False)
    session = session_of(model)
    trained = {name for name, _ in session.trained()}
    assert [name for name, _ in session.frozen] == ["0.weight"]
    assert trained | {"0.weight"} == {name for name, _ in model.named_parameters()}
    assert "0.weight" not in trained


def test_buffers_are_read_anew_where_a_module_puts_another_in_place() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    session = session_of(model)
    model[1].running_mean = torch.full((2,), 7.0)
    assert torch.equal(dict(session.shared_buffers())["1.running_mean"], torch.full((2,), 7.0))


def test_a_changed_model_is_refused() -> None:
    model = mlp()
    model[0].weight.requires_grad_(False)
    session = session_of(model)
    session.refuse_changed()
    session.refuse_newly_frozen()
    model[2].bias.requires_grad_(False)
    with pytest.raises(AttachError, match=r"'2\.bias' trained at attach and is frozen now"):
        session.refuse_newly_frozen()
    model[0].weight.requires_grad_(True)
    with pytest.raises(AttachError, match=r"'0\.weight' was frozen at attach and trains now"):
        session.refuse_changed()


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ENGINE).as_posix())
def test_no_part_of_the_engine_knows_the_syncer(path: Path) -> None:
    """Not for its types either: each part takes what it needs."""
    if path.name in MAY_IMPORT_SYNCER:
        return
    imports = [
        node.module
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom)
    ]
    assert "thinwire.engine.syncer" not in imports


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ENGINE).as_posix())
def test_no_file_of_the_engine_is_two_ideas_long(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= MOST_LINES


def test_a_syncer_has_few_attributes() -> None:
    tree = ast.parse((ENGINE / "syncer.py").read_text(encoding="utf-8"))
    set_here = {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and isinstance(node.ctx, ast.Store)
        and isinstance(node.value, ast.Name)
        and node.value.id == "self"
    }
    assert {"session", "clock", "source"} <= set_here
    assert len(set_here) <= MOST_ATTRIBUTES, sorted(set_here)
