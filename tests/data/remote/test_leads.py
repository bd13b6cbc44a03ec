"""Where an address may lead: a server that sends a reader elsewhere is followed only as far as the
user has allowed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.data.server import Fault, Handler, Site, served
from thinwire.data.corpus.text import read_text
from thinwire.data.loaders.sets import SetReader
from thinwire.data.remote import leads
from thinwire.data.remote.http import Http
from thinwire.data.remote.leads import host_names, must_be_allowed
from thinwire.data.remote.stores import files_at, store_of
from thinwire.errors import DataError

TEXT = (
    b"Call me Ishmael. Some years ago, never mind how long precisely.\n\n"
    b"Having little or no money in my purse.\n" * 50
)


@pytest.fixture
def site() -> Iterator[Site]:
    with served(Site({"/a.txt": TEXT, "/b.txt": TEXT, "/secret.txt": b"inside"})) as up:
        yield up


def lead(to: str, code: int = 302) -> Fault:
    """Send the reader elsewhere."""

    def fault(handler: Handler, data: bytes, first: int, last: int, number: int) -> None:
        handler.send_response(code)
        handler.send_header("Location", to)
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    return fault


def localhost(url: str) -> str:
    """The same server by another name."""
    return url.replace("127.0.0.1", "localhost")


@pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("to", ["{url}/b.txt", "/b.txt", "b.txt"])
def test_the_same_host_is_followed(site: Site, code: int, to: str) -> None:
    site.faults = [lead(to.format(url=site.url), code)]
    assert Http(tries=1).about(f"{site.url}/a.txt").size == len(TEXT)
    assert [path for path, _ in site.asked] == ["/a.txt", "/b.txt"]


@pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
def test_another_host_is_not_until_it_is_allowed(site: Site, code: int) -> None:
    site.faults = [lead(f"{localhost(site.url)}/b.txt", code)]
    with pytest.raises(
        DataError,
        match=(
            r"a.txt' leads to 'http://localhost:.*/b.txt', on another host: .* --data-hosts "
            r"localhost"
        ),
    ):
        Http(tries=1).about(f"{site.url}/a.txt")
    assert [path for path, _ in site.asked] == ["/a.txt"], "nothing was asked of it"
    site.faults = [lead(f"{localhost(site.url)}/b.txt", code)]
    assert Http(tries=1, hosts=("localhost",)).about(f"{site.url}/a.txt").size == len(TEXT)


def test_the_second_of_two_redirects_is_judged_by_the_first_address(site: Site) -> None:
    site.faults = [lead(f"{localhost(site.url)}/b.txt"), lead(f"{site.url}/b.txt")]
    assert Http(tries=1, hosts=("localhost",)).about(f"{site.url}/a.txt").size == len(TEXT)
    site.faults = [lead(f"{site.url}/b.txt"), lead(f"{localhost(site.url)}/b.txt")]
    with pytest.raises(DataError, match="on another host"):
        Http(tries=1).about(f"{site.url}/a.txt")


@pytest.mark.parametrize(
    "to",
    ["file:///etc/hostname", "ftp://127.0.0.1/x", "data:text/plain,hello", "gopher://127.0.0.1/"],
)
def test_what_is_no_address_of_a_server_is_never_followed(site: Site, to: str) -> None:
    site.faults = [lead(to)]
    with pytest.raises(DataError, match="only http:// and https:// are followed"):
        Http(tries=1, hosts=("127.0.0.1", "localhost", "")).about(f"{site.url}/a.txt")


@pytest.mark.parametrize(
    "url", ["file:///etc/hostname", "ftp://127.0.0.1/x", "data:text/plain,hello"]
)
def test_a_reader_of_servers_opens_nothing_else(url: str) -> None:
    with pytest.raises(DataError, match="is no address that can be read"):
        Http(tries=1).about(url)


def test_https_does_not_lead_to_http() -> None:
    with pytest.raises(DataError, match="from https to http, where anybody on the way"):
        must_be_allowed("https://host/a", "http://host/a", ("host",))
    assert must_be_allowed("http://host/a", "https://host/a", ())


@pytest.mark.parametrize(
    ("address", "named"),
    [
        ("127.0.0.1", "127.0.0.1"),
        ("10.1.2.3", "10.1.2.3"),
        ("169.254.169.254", "169.254.169.254"),
        ("100.64.0.1", "100.64.0.1"),
        ("::1", "::1"),
        ("::ffff:10.0.0.1", "::ffff:10.0.0.1"),
        ("fd00::1", "fd00::1"),
    ],
)
def test_an_address_inside_is_refused_from_outside_though_its_name_is_allowed(
    address: str, named: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = {
        "cdn.example": address,
        "outside.example": "93.184.216.34",
        "inside.example": "192.168.1.2",
    }
    monkeypatch.setattr(
        leads.socket, "getaddrinfo", lambda host, _: [(0, 0, 0, "", (known.get(host, host), 0))]
    )
    with pytest.raises(
        DataError, match=f"whose address {named} is inside .* --data-hosts .*{named}"
    ):
        must_be_allowed("https://outside.example/", "https://cdn.example/", ("cdn.example",))
    assert must_be_allowed("https://inside.example/", "https://cdn.example/", ("cdn.example",))
    assert must_be_allowed(
        "https://outside.example/", "https://cdn.example/", ("cdn.example", address)
    )
    known["cdn.example"] = "93.184.216.35"
    assert must_be_allowed("https://outside.example/", "https://cdn.example/", ("cdn.example",))


def test_a_host_that_does_not_resolve_is_left_to_a_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError("no such host")

    monkeypatch.setattr(leads.socket, "getaddrinfo", fail)
    assert must_be_allowed("https://a.example/", "https://b.example/", ("b.example",))


@pytest.mark.parametrize(
    "line",
    [
        "file:///etc/hostname",
        "http://localhost:{port}/b.txt",
        "//localhost:{port}/b.txt",
        "ftp://x/y",
    ],
)
def test_a_list_of_files_leads_no_further_than_a_redirect(
    site: Site, tmp_path: Path, line: str
) -> None:
    port = site.url.rpartition(":")[2]
    site.files["/set/files.txt"] = f"../a.txt\n{line.format(port=port)}\n".encode()
    with pytest.raises(
        DataError, match=r"files.txt' leads to '.*', (on another host|which is no address)"
    ):
        read_text(f"{site.url}/set/", tmp_path)
    assert not [path for path, _ in site.asked if path != "/set/files.txt"]


def test_a_list_may_name_hosts_that_are_allowed(site: Site, tmp_path: Path) -> None:
    port = site.url.rpartition(":")[2]
    site.files["/set/files.txt"] = f"../a.txt\nhttp://localhost:{port}/b.txt\n".encode()
    assert len(files_at(f"{site.url}/set/", hosts=("localhost",))) == 2
    text = read_text(f"{site.url}/set/", tmp_path, hosts=("localhost",))
    assert len(text.train) + len(text.held) >= 2
    store = store_of(f"{site.url}/set/", ("localhost",))
    site.faults = [lead(f"{site.url}/a.txt")]
    assert store.about(f"http://localhost:{port}/b.txt").size == len(TEXT), "and they may lead back"


def test_a_set_whose_server_leads_elsewhere(site: Site, tmp_path: Path) -> None:
    site.files["/set/index.json"] = b"{}"
    site.every = lead(f"{localhost(site.url)}/set/index.json")
    with pytest.raises(DataError, match="on another host"):
        SetReader(f"{site.url}/set/", tmp_path, 10**9)


def test_a_chain_of_addresses_is_refused() -> None:
    for url in ("simplecache::https://host/a", "filecache::file:///etc/hostname"):
        with pytest.raises(DataError, match="is a chain of addresses"):
            store_of(url)


@pytest.mark.parametrize(
    "text", ["https://a.example", "a.example/b", "a b", "a.example:80", "user@a.example"]
)
def test_what_is_no_name_of_a_host_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not the name of a host"):
        host_names(text)


def test_names_of_hosts() -> None:
    assert host_names(" CDN.example , 10.0.0.5,fd00::1") == ("cdn.example", "10.0.0.5", "fd00::1")
    assert host_names("") == ()
