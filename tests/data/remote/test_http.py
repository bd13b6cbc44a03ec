"""A server that stalls, cuts and lies: what comes in the end is the file, byte for byte, or one
line that says why not."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.data.server import Fault, Site, announce, cut, lie, refuse, served, stall, status
from thinwire.data.remote import http
from thinwire.data.remote.disk import DiskCache
from thinwire.data.remote.http import About, Http
from thinwire.data.remote.stores import RemoteFile
from thinwire.errors import DataError

FILE = bytes(range(256)) * 1000


@pytest.fixture
def site() -> Iterator[Site]:
    with served(Site({"/a.bin": FILE, "/empty": b""})) as up:
        yield up


def client(tries: int = 4) -> tuple[Http, list[float]]:
    """A client that is soon out of patience, and the pauses that it made."""
    pauses: list[float] = []
    return Http(stall_s=0.3, tries=tries, sleep=pauses.append), pauses


def test_ranges_are_those_of_the_file(site: Site) -> None:
    reader, pauses = client()
    about = reader.about(f"{site.url}/a.bin")
    assert about == About(len(FILE), '"1"')
    for begin, end in ((0, 10), (100_000, 200_001), (len(FILE) - 1, len(FILE)), (5, 5)):
        assert reader.read(f"{site.url}/a.bin", begin, end, about) == FILE[begin:end]
    assert site.sent == 1 + 10 + 100_001 + 1, "no more than was asked for"
    assert not pauses


def test_an_empty_file_is_empty(site: Site) -> None:
    assert client()[0].about(f"{site.url}/empty").size == 0


def test_a_server_without_ranges_serves_too(site: Site) -> None:
    site.ranges = False
    reader, _ = client()
    about = reader.about(f"{site.url}/a.bin")
    assert reader.read(f"{site.url}/a.bin", 1000, 2000, about) == FILE[1000:2000]


faults = st.lists(
    st.one_of(
        st.builds(cut, st.floats(0, 1)),
        st.sampled_from([refuse, status(503), status(429), status(500), None]),
    ),
    max_size=6,
)


@settings(
    deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(faults=faults, begin=st.integers(0, 1000), length=st.integers(1, 250_000))
def test_whatever_goes_wrong_on_the_way_every_byte_comes_once(
    site: Site, faults: list[Fault | None], begin: int, length: int
) -> None:
    site.faults = list(faults)
    end = min(begin + length, len(FILE))
    assert (
        client(tries=20)[0].read(f"{site.url}/a.bin", begin, end, About(len(FILE), '"1"'))
        == FILE[begin:end]
    )
    site.faults.clear()


def test_a_cut_line_goes_on_where_it_stopped(site: Site) -> None:
    site.faults = [cut(0.5), cut(0.5)]
    reader, pauses = client()
    assert reader.read(f"{site.url}/a.bin", 0, 100_000, About(len(FILE), '"1"')) == FILE[:100_000]
    assert [asked for _, asked in site.asked] == [
        "bytes=0-99999",
        "bytes=50000-99999",
        "bytes=75000-99999",
    ]
    assert len(pauses) == 2


def test_a_stalled_line_is_left_and_goes_on_where_it_stopped(site: Site) -> None:
    site.faults = [stall(0.25, 3)]
    assert client()[0].read(f"{site.url}/a.bin", 0, 1000, About(len(FILE), '"1"')) == FILE[:1000]
    assert site.asked[1] == ("/a.bin", "bytes=250-999")


def test_a_line_that_trickles_is_left(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "TRICKLE_S", 0.1)

    def trickle(to, data, first, last, number) -> None:  # type: ignore[no-untyped-def]
        import time

        to.head(206, last - first + 1, f"bytes {first}-{last}/{len(data)}")
        for at in range(first, first + 30):
            to.send(data[at : at + 1])
            time.sleep(0.02)
        to.hang_up()

    site.faults = [trickle]
    assert client()[0].read(f"{site.url}/a.bin", 0, 1000, About(len(FILE), '"1"')) == FILE[:1000]
    first = int(site.asked[1][1].removeprefix("bytes=").partition("-")[0])
    assert 0 < first < 30, "it was left before it hung up by itself"


def another(to, data, *_) -> None:  # type: ignore[no-untyped-def]
    to.head(206, 1000, f"bytes 0-999/{len(data)}", '"2"')
    to.send(data[:1000])


@pytest.mark.parametrize(
    ("fault", "requests", "line"),
    [
        (status(404), 1, "answers 404 Not Found; check the address"),
        (status(403), 1, "answers 403 Forbidden; check the address"),
        (status(503), 4, "answers 503 Service Unavailable.*, 4 times in a row"),
        (refuse, 4, "cannot be read .*, 4 times in a row"),
        (cut(0), 4, "the connection ended after 0 of 1000 bytes"),
        (stall(0, 3), 4, "timed out.*4 times in a row"),
        (lie(5), 1, "has changed while it was read|contradicts itself"),
        (lie(10**9), 1, "has changed while it was read"),
        (
            announce("bytes 7-8/256000", 2),
            1,
            "contradicts itself: asked from byte 0, it sends 7 to 8",
        ),
        (announce("bytes 0-1/256000", 5), 1, "says that these are 5 bytes"),
        (announce("bytes 0-1/*", 2), 1, "without saying which one"),
        (announce("", 2), 1, "without saying which one"),
        (lambda to, *_: to.head(200, None), 1, "does not say how long the file is"),
        (another, 1, "has changed"),
    ],
    ids=range(14),
)
def test_what_cannot_be_had_is_one_line(site: Site, fault: Fault, requests: int, line: str) -> None:
    site.every = fault
    with pytest.raises(DataError, match=line) as told:
        client()[0].read(f"{site.url}/a.bin", 0, 1000, About(len(FILE), '"1"'))
    assert len(site.asked) == requests
    assert "\n" not in str(told.value)


def test_a_server_that_promises_more_than_it_has(site: Site) -> None:
    site.every = lie(len(FILE) + 1000)
    reader, _ = client()
    about = reader.about(f"{site.url}/a.bin")
    with pytest.raises(DataError, match="it lies about the length"):
        reader.read(f"{site.url}/a.bin", len(FILE) - 10, about.size, about)


def test_pauses_grow_and_a_server_may_ask_for_longer(site: Site) -> None:
    site.every = status(503)
    reader, pauses = client(tries=6)
    with pytest.raises(DataError):
        reader.about(f"{site.url}/a.bin")
    assert all(0.125 * 2**at <= pause <= 0.25 * 2**at for at, pause in enumerate(pauses))

    def wait(to, *_) -> None:  # type: ignore[no-untyped-def]
        to.send_response(429)
        to.send_header("Retry-After", "3")
        to.send_header("Content-Length", "0")
        to.end_headers()

    site.faults = [wait]
    site.every = None
    pauses.clear()
    reader.about(f"{site.url}/a.bin")
    assert pauses == [3.0]


@pytest.mark.parametrize("url", ["http://127.0.0.1:1/a", "nothing", "http://"])
def test_no_server_is_one_line(url: str) -> None:
    with pytest.raises(DataError, match=r"cannot be read|no address"):
        client()[0].about(url)


@settings(
    deadline=None, max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    moves=st.lists(st.tuples(st.integers(0, 300_000), st.integers(0, 50_000)), max_size=5),
    block=st.sampled_from([1000, 65_537, 1 << 22]),
)
def test_a_remote_file_reads_like_one_here(
    site: Site, tmp_path: Path, moves: list[tuple[int, int]], block: int
) -> None:
    with RemoteFile(f"{site.url}/a.bin", client()[0], DiskCache(tmp_path), block) as file:
        for at, size in moves:
            file.seek(at)
            data = b""
            while len(data) < size and (more := file.read(size - len(data))):
                data += more
            assert data == FILE[at : at + size]


def test_a_block_is_fetched_once_and_only_where_it_is_read(site: Site, tmp_path: Path) -> None:
    for _ in range(2):
        with RemoteFile(f"{site.url}/a.bin", client()[0], DiskCache(tmp_path), 1000) as file:
            file.seek(5500)
            assert file.read(10) == FILE[5500:5510]
    assert [asked for _, asked in site.asked if asked != "bytes=0-0"] == ["bytes=5000-5999"]
    site.etag = '"2"'
    site.files["/a.bin"] = FILE[::-1]
    with RemoteFile(f"{site.url}/a.bin", client()[0], DiskCache(tmp_path), 1000) as file:
        assert file.read(10) == FILE[::-1][:10], "another version is another file"
