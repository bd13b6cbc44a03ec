"""Hosts that fetch for each other: every shard comes from afar once, and nobody is trusted."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.data.loaders.test_sets import SPECIALS, TEXT
from tests.data.server import Site, served
from thinwire.data import Reader, SetReader, Streamed, tokenizer_from, write_set
from thinwire.data.claims import LOCK, owner
from thinwire.data.remote.peers import Peers, peers_from
from thinwire.errors import DataError


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sets") / "packed"
    write_set(folder, TEXT, tokenizer_from("byte", TEXT, SPECIALS), 1024)
    return folder


def ports(count: int) -> list[str]:
    with ExitStack() as open_:
        sockets = [
            open_.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)
        ]
        return [f"127.0.0.1:{each.getsockname()[1]}" for each in sockets]


@contextmanager
def hosts(count: int, site: Site, folder: Path, silent: int = -1) -> Iterator[list[SetReader]]:
    addresses, made = ports(count), []
    with ExitStack() as open_:
        for own in range(count):
            peers = Peers(addresses, own)
            open_.callback(peers.close)
            made.append(SetReader(site.url, folder / str(own), 10**9, peers))
            if own != silent:
                peers.serve(made[-1].by_checksum)
        yield made


def test_who_shares_a_cache_does_not_wait_for_itself(packed: Path, tmp_path: Path) -> None:
    """Another host asks for what it is fetching into the folder that both share: it is told at once
    that it gets nothing here."""
    with served(Site(folder=packed)) as site:
        source = SetReader(site.url, tmp_path, 10**9)
        shard = source.set.train[0]
        path = source._cache._path(shard.sha256)
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = path.with_name(path.name + LOCK)
        lock.write_text("another-1-2-3")
        with pytest.raises(LookupError, match="into the cache that this host shares"):
            source.by_checksum(shard.sha256)
        lock.write_text(owner())
        assert not source._cache.fetched_elsewhere(shard.sha256)
        lock.unlink()
        assert len(source.by_checksum(shard.sha256)) == 1024


def test_everyone_reads_everything_and_it_comes_from_afar_once(
    packed: Path, tmp_path: Path
) -> None:
    with served(Site(folder=packed)) as site, hosts(3, site, tmp_path) as sources:
        found: dict[int, list[list[int]]] = {}

        def read(own: int) -> None:
            found[own] = [sources[own].ids(shard).tolist() for shard in sources[own].set.train]

        threads = [threading.Thread(target=read, args=(own,)) for own in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        here = SetReader(str(packed), tmp_path, 10**9)
        all_ids = [here.ids(shard).tolist() for shard in here.set.train]
        assert [found[own] for own in range(3)] == [all_ids] * 3
        whole = sum(2 * shard.tokens for shard in here.set.train)
        assert sum(source.fetched_bytes for source in sources) == whole
        assert all(source.fetched_bytes < 0.5 * whole for source in sources)
        shards = [path for path, _ in site.asked if "train-" in path]
        assert len(shards) == len(set(shards)) == len(here.set.train)


def test_batches_are_the_same(packed: Path, tmp_path: Path) -> None:
    with served(Site(folder=packed)) as site, hosts(2, site, tmp_path) as sources:
        for rank, source in enumerate(sources):
            one = Streamed(source, Reader(4, rank, 2), length=9, overlap=1)
            other = Streamed(
                SetReader(str(packed), tmp_path, 10**9), Reader(4, rank, 2), length=9, overlap=1
            )
            assert all(one.at(step).equal(other.at(step)) for step in range(0, 100, 9))
            one.close()
            other.close()


def test_a_silent_peer_is_told_once_and_done_without(packed: Path, tmp_path: Path) -> None:
    with served(Site(folder=packed)) as site, hosts(2, site, tmp_path, silent=1) as sources:
        shards = [shard for shard in sources[0].set.train if int(shard.sha256[:8], 16) % 2 == 1][:3]
        with pytest.warns(UserWarning, match="hands nothing out .*: fetching it from afar") as told:
            lengths = [len(sources[0].ids(shard)) for shard in shards]
        assert lengths == [shard.tokens for shard in shards]
        assert len(told) == 1


def test_a_peer_that_lies_is_found_out(packed: Path, tmp_path: Path) -> None:
    with served(Site(folder=packed)) as site:
        addresses = ports(2)
        liar, peers = Peers(addresses, 1), Peers(addresses, 0)
        liar.serve(lambda _: b"x" * 1024)
        source = SetReader(site.url, tmp_path, 10**9, peers)
        shard = next(each for each in source.set.train if int(each.sha256[:8], 16) % 2 == 1)
        with pytest.raises(DataError, match="another checksum"):
            source.ids(shard)
        liar.close()


def test_only_what_the_index_names_is_handed_out(packed: Path, tmp_path: Path) -> None:
    with pytest.raises(LookupError):
        SetReader(str(packed), tmp_path, 10**9).by_checksum("../index.json")


@pytest.mark.parametrize(
    ("environ", "line"),
    [
        ({"THINWIRE_PEERS": "10.0.0.1"}, "no HOST:PORT"),
        ({"THINWIRE_PEERS": "a:1,b:x"}, "'b:x', which is no HOST:PORT"),
        ({"THINWIRE_PEERS": "a:1,b:2", "GROUP_RANK": "2"}, "holds 2 addresses, and this is host 2"),
    ],
    ids=range(3),
)
def test_addresses_that_cannot_be_are_refused(environ: dict[str, str], line: str) -> None:
    with pytest.raises(DataError, match=line):
        peers_from(environ)


def test_an_address_of_another_host_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cannot listen on 192\.0\.2\.1:7700"):
        Peers(["192.0.2.1:7700"], 0).serve(lambda _: b"")
    assert peers_from({}) is None
