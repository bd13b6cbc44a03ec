"""The store: where it listens, and what is said where it cannot be reached, in seconds."""

from __future__ import annotations

import os
import socket
import time
from datetime import timedelta

import pytest

from tests.train.test_strangers import listening
from thinwire.cli.main import main
from thinwire.drive import interfaces
from thinwire.drive.interfaces import Interface, leading_to, resolve
from thinwire.drive.torch import transport_cause
from thinwire.errors import ConfigError, FlightError
from thinwire.launch import rendezvous, store
from thinwire.launch.rendezvous import choose_interface, meeting
from thinwire.launch.store import Endpoint, reach, serve

SOON = timedelta(seconds=1.5)


def place(host: str = "127.0.0.1", port: int = 0, several: bool = False) -> Endpoint:
    return Endpoint(host, port, "MASTER_ADDR", several)


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost", "127.0.0.2"])
def test_it_listens_at_its_address_alone(host: str) -> None:
    notes: list[str] = []
    served = serve(place(host), notes.append)
    assert [address for address, port in listening(os.getpid()) if port == served.port] == [
        resolve(host, "")[0]
    ]
    other = reach(place(host, served.port), SOON, notes.append)
    other.set("a", b"1")
    assert served.get("a") == b"1"
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.3", served.port), 1)
    assert notes == []


def test_an_address_of_no_interface_is_served_on_all_of_them_and_said() -> None:
    notes: list[str] = []
    served = serve(place("203.0.113.9"), notes.append)
    assert any(
        address in ("0.0.0.0", "::")
        for address, port in listening(os.getpid())
        if port == served.port
    )
    assert len(notes) == 1
    assert (
        "(203.0.113.9) is no address of this machine, so the store listens on all of its interfaces"
        in notes[0]
    )


def test_a_taken_port_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(
            ConfigError,
            match=(
                rf"port {port} of 127\.0\.0\.1 is taken: .*Give another port to every rank "
                r"\(MASTER_ADDR\)"
            ),
        ):
            serve(place(port=port), print)


@pytest.mark.parametrize("host", ["nonsense.invalid", "a..b", "x" * 70 + ".com"])
def test_an_address_that_does_not_resolve_is_named_at_once(host: str) -> None:
    begun = time.monotonic()
    for ask in (
        lambda: serve(place(host), print),
        lambda: reach(place(host, 1), timedelta(minutes=10), print),
    ):
        with pytest.raises(
            ConfigError, match=rf"^MASTER_ADDR={host}: this machine cannot resolve it"
        ):
            ask()
    assert time.monotonic() - begun < 15


def test_a_name_server_that_never_answers_costs_ten_seconds_at_most(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(interfaces, "RESOLVES_WITHIN_S", 0.2)
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: time.sleep(5))
    with pytest.raises(
        ConfigError, match=r"MASTER_ADDR=ant: no name server answered within 0\.2 s"
    ):
        serve(place("ant"), print)


def test_a_refused_port_is_waited_for_and_named(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "PATIENCE_S", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    notes: list[str] = []
    with pytest.raises(
        FlightError,
        match=(
            rf"no store answered at 127\.0\.0\.1:{port} within 1\.5 s \(Connection refused\): is "
            r"rank 0 run"
        ),
    ):
        reach(place(port=port), SOON, notes.append)
    assert notes == [
        (
            f"waiting for the store at 127.0.0.1:{port} (Connection refused); it comes up with "
            "rank 0's machine"
        )
    ]
    assert capfd.readouterr() == ("", ""), "torch's C++ has nothing to say of it"


def test_a_program_that_is_no_store_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "GREETING_S", 1.0)
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(
            FlightError,
            match=rf"what listens at 127\.0\.0\.1:{port} does not answer as torch's store does",
        ):
            reach(place(port=port), SOON, print)


def test_loopback_leads_no_other_machine_to_the_store(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "reachable", lambda: [Interface("eth0", "10.0.0.1")])
    with pytest.raises(
        ConfigError,
        match=(
            r"is 127\.0\.0\.1 on this machine, which no other machine reaches.* eth0 "
            r"\(10\.0\.0\.1\)"
        ),
    ):
        serve(place(several=True), print)


def test_the_interface_that_holds_or_leads_there_is_taken_and_said(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    there = {"lo": ["127.0.0.1"], "eth0": ["192.0.2.7"], "wg0": ["10.77.0.2"]}
    monkeypatch.setattr(interfaces, "addresses", lambda: there)
    assert leading_to("127.0.0.9") == Interface("lo", "127.0.0.1")

    monkeypatch.setattr(rendezvous, "leading_to", lambda _: Interface("wg0", "10.77.0.2"))
    notes: list[str] = []
    for named in ("", "eth0"):
        monkeypatch.setenv("GLOO_SOCKET_IFNAME", named)
        choose_interface(place("10.77.0.1", 29500, several=True), notes.append)
        assert os.environ["GLOO_SOCKET_IFNAME"] == (named or "wg0")
    assert notes == [
        (
            "ranks talk over wg0 (10.77.0.2), which leads to MASTER_ADDR=10.77.0.1; "
            "GLOO_SOCKET_IFNAME would choose another"
        ),
    ]


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"MASTER_ADDR": ""}, "MASTER_ADDR is not set, and RANK is"),
        ({"MASTER_PORT": "ssh"}, "MASTER_PORT=ssh: expected an integer from 1 to 65535"),
        ({"MASTER_PORT": "65536"}, "MASTER_PORT=65536: expected an integer"),
        ({"RANK": "2"}, "RANK=2 of WORLD_SIZE=2: ranks are 0 to 1"),
        ({"WORLD_SIZE": "-1"}, "WORLD_SIZE=-1: expected an integer"),
        (
            {"MASTER_ADDR": "nonsense.invalid"},
            "MASTER_ADDR=nonsense.invalid: this machine cannot resolve it",
        ),
    ],
)
def test_variables_that_cannot_be_are_named(
    variables: dict[str, str], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual = {
        "RANK": "0",
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "1",
    }
    for name, value in (usual | variables | {"GLOO_SOCKET_IFNAME": "lo"}).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=said):
        meeting(print)


def test_gloos_failure_names_the_interface_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interfaces, "leading_to", lambda _: Interface("wg0", "10.77.0.2"))
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    failed = RuntimeError(
        "Gloo connectFullMesh failed with SO_ERROR: Connection refused, "
        "remote=[127.0.0.1]:4242\nmore"
    )
    monkeypatch.delenv("GLOO_SOCKET_IFNAME", raising=False)
    said = transport_cause(failed)
    assert "GLOO_SOCKET_IFNAME=wg0, as wg0 (10.77.0.2) leads to MASTER_ADDR=127.0.0.1" in said
    assert transport_cause(RuntimeError("Connection reset by peer")) == "Connection reset by peer"
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "eth0")
    assert transport_cause(failed) == str(failed).partition("\n")[0], "the user has named one"


def test_rank_0_without_a_launcher_serves_the_store_at_its_address_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As the lab starts ranks: each by itself, with the variables of torchrun and nobody who
    serves."""
    with socket.create_server(("127.0.0.2", 0)) as free:
        port = free.getsockname()[1]
    monkeypatch.delenv("TORCHELASTIC_USE_AGENT_STORE", raising=False)
    for name, value in {
        "RANK": "0",
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.2",
        "MASTER_PORT": str(port),
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    meets = meeting(print)
    assert [address for address, there in listening(os.getpid()) if there == port] == ["127.0.0.2"]
    assert meets.store is not None


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (
            ["--master=nonsense.invalid:1"],
            "--master=nonsense.invalid: this machine cannot resolve it",
        ),
        (["--master=127.0.0.1:1"], "which no other machine reaches"),
        ([], "--nodes 2 needs --master HOST:PORT"),
        (["--master=a:b:c"], "got 'a:b:c'"),
        (
            ["--master=10.0.0.1:1", "--node-rank=2"],
            "--node-rank 2 of --nodes 2: machines are 0 to 1",
        ),
    ],
)
def test_machines_that_cannot_meet_are_refused_in_a_line(
    flags: list[str], said: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "--nodes=2", *flags]) == 2
    err = capfd.readouterr().err
    assert said in err
    assert err.count("\n") == 1
