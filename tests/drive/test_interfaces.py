"""Which interface leads to an address, and what to do where gloo does not connect."""

import pytest

from thinwire.drive import interfaces
from thinwire.errors import ConfigError


def test_loopback_leads_to_itself_and_is_not_reachable() -> None:
    leading = interfaces.leading_to("127.0.1.1")
    assert leading is not None
    assert leading.name == "lo"
    assert all(not interfaces.is_loopback(each.address) for each in interfaces.reachable())


def test_a_name_that_does_not_resolve_is_refused_with_what_to_do() -> None:
    with pytest.raises(
        ConfigError, match=r"MASTER_ADDR=no\.such\.host\.invalid: .* give the address"
    ):
        interfaces.resolve("no.such.host.invalid", "MASTER_ADDR")


def test_advice_names_the_interface_that_leads_to_rank_0(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.delenv(interfaces.VARIABLE, raising=False)
    assert "set GLOO_SOCKET_IFNAME, here GLOO_SOCKET_IFNAME=lo" in interfaces.advice(
        "connectFullMesh failed"
    )
    assert interfaces.advice("another trouble") == ""
    monkeypatch.setenv(interfaces.VARIABLE, "lo")
    assert interfaces.advice("connectFullMesh failed") == ""
