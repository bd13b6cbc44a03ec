"""Where products in bf16 are faster."""

import pytest
import torch

from thinwire.planner.machine.processor import computes_bf16


@pytest.mark.parametrize(("capability", "fast"), [((7, 5), False), ((8, 0), True), ((9, 0), True)])
def test_gpus_have_bf16_from_8_0_on(
    capability: tuple[int, int], fast: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    assert computes_bf16(torch.device("cuda", 0)) is fast


@pytest.mark.parametrize("tiles", [True, False])
def test_cpus_have_it_with_tiles(tiles: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: tiles)
    assert computes_bf16(torch.device("cpu")) is tiles
