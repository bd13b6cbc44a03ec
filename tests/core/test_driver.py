"""Every driver and handle has all of its interface, with the arguments that it names."""

from __future__ import annotations

import inspect
import math
from typing import Any

import pytest

from tests.threads import on_threads
from thinwire.core import Driver, Handle, RankContext, Stage, collective
from thinwire.drive._lane import TorchHandle
from thinwire.drive.local import LocalDriver, LocalHandle
from thinwire.drive.torch import TorchDriver
from thinwire.quorum.join import _Alone

DRIVERS = [LocalDriver, TorchDriver, _Alone]
HANDLES = [LocalHandle, TorchHandle]


def members(interface: type) -> dict[str, Any]:
    return {
        name: value
        for name, value in vars(interface).items()
        if not name.startswith("_") and (callable(value) or isinstance(value, property))
    }


def set_in(made: type, name: str) -> bool:
    """Whether a class has a member: on itself, as a field, or set when it is made."""
    if hasattr(made, name) or name in getattr(made, "__dataclass_fields__", {}):
        return True
    return f"self.{name}" in inspect.getsource(made.__init__)  # type: ignore[misc]


@pytest.mark.parametrize("driver", DRIVERS, ids=lambda each: each.__name__)
def test_a_driver_has_every_member(driver: type) -> None:
    assert [name for name in members(Driver) if not set_in(driver, name)] == []


@pytest.mark.parametrize("handle", HANDLES, ids=lambda each: each.__name__)
def test_a_handle_has_every_member(handle: type) -> None:
    assert [name for name in members(Handle) if not set_in(handle, name)] == []


@pytest.mark.parametrize("driver", DRIVERS, ids=lambda each: each.__name__)
def test_arguments_have_the_names_and_defaults_of_the_interface(driver: type) -> None:
    for name, method in members(Driver).items():
        if isinstance(method, property):
            continue
        expected = inspect.signature(method).parameters.values()
        own = inspect.signature(getattr(driver, name)).parameters.values()
        assert [(each.name, each.default) for each in own] == [
            (each.name, each.default) for each in expected
        ], name


def test_the_control_lane_is_the_one_after_the_last() -> None:
    def work(driver: Driver) -> tuple[list[float], float]:
        ctx = RankContext(driver.rank, tuple(range(driver.world)), 0, 0)
        handles = [
            driver.start(
                collective.all_gather(_bytes(driver.rank + lane), ctx), lane, f"lane {lane}"
            )
            for lane in range(driver.lanes + 1)
        ]
        gathered = [[int(each[0]) for each in handle.wait()] for handle in handles]
        return gathered, sum(handle.sent_bytes for handle in handles)

    for gathered, sent in on_threads(3, work, lanes=2).values():
        assert gathered == [[lane, lane + 1, lane + 2] for lane in range(3)]
        assert sent > 0


def _bytes(value: int) -> Any:
    import torch

    return torch.tensor([value], dtype=torch.uint8)


def test_a_stage_is_a_part_of_a_flight_in_seconds() -> None:
    stage = Stage("wire", 1.0, 3.5, 10.0)
    assert math.isclose(stage.end - stage.begin, 2.5)
    assert Stage("encode", 0.0, 1.0).sent_bytes == 0.0
    with pytest.raises(AttributeError):
        stage.end = 4.0  # type: ignore[misc]
