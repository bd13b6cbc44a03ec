"""Over a thin emulated wire, from a server that misbehaves: the same rows, and each host its share
of the bytes."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import pytest

from tests.lab.possible import why_not
from thinwire.data import Reader, SetReader, Streamed, Text, tokenizer_from, write_set
from thinwire.lab import Lab
from thinwire.net import Wire, uniform

pytestmark = pytest.mark.skipif(bool(why := why_not()), reason=why)

STEPS = 40
PROGRAM = """
import hashlib, json, os, sys, time
from pathlib import Path

rank, folder = int(os.environ["RANK"]), Path(sys.argv[1])
if rank == 0:
    from tests.data.server import Site, cut, served, stall, status
    faults = [None, None, cut(0.4), status(503), cut(0.0), None, stall(0.5, 20), cut(0.9)]
    with served(Site(folder=folder / "set", faults=faults), "0.0.0.0", 8000):
        while len(list(folder.glob("*.json"))) < 2:
            time.sleep(0.1)
else:
    from thinwire.data import Prefetch, Reader, SetReader, Streamed
    while True:
        try:
            source = SetReader("http://10.77.0.1:8000/", folder / f"cache{rank}", 10**9)
            source._store._stall_s = 2.0
            break
        except Exception:
            time.sleep(0.2)
    stream = Streamed(source, Reader(8, rank - 1, 2), length=65, overlap=1, stripes=8)
    rows = []
    with Prefetch(stream.at, stop=STEPS) as ahead:
        for step in range(STEPS):
            rows += ahead.at(step).tolist()
    stream.close()
    told = {"rows": rows, "fetched": source.fetched_bytes, "wait_s": ahead.wait_s}
    (folder / f"{rank}.partial").write_text(json.dumps(told))
    os.replace(folder / f"{rank}.partial", folder / f"{rank}.json")
""".replace("STEPS", str(STEPS))


@pytest.mark.timeout(280)
def test_hosts_behind_a_thin_wire_read_their_shares_whatever_the_server_does(
    tmp_path: Path,
) -> None:
    text = Text(
        "letters",
        tuple(f"{at}: {at * 7919 % 10007} and so on".encode() * 40 for at in range(240)),
        (b"held",),
    )
    made = write_set(tmp_path / "set", text, tokenizer_from("byte", text, ["<|endoftext|>"]), 4096)
    begun = time.monotonic()
    with Lab(uniform(3, bits_per_s=4e6, wire=Wire(latency_s=0.01))) as lab:
        ran = lab.run(
            [sys.executable, "-c", PROGRAM, str(tmp_path)],
            timeout=240,
            env={"OMP_NUM_THREADS": "1"},
        )
    assert ran.worst == 0
    assert time.monotonic() - begun < 240
    told = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (1, 2)]
    here = Streamed(
        SetReader(str(tmp_path / "set"), tmp_path / "no", 10**9),
        Reader(16),
        length=65,
        overlap=1,
        stripes=8,
    )
    whole = [row for step in range(STEPS) for row in here.at(step).tolist()]
    here.close()
    assert sorted(told[0]["rows"] + told[1]["rows"]) == sorted(whole)
    everything = sum(2 * shard.tokens for shard in made.train)
    assert all(0 < each["fetched"] < 0.75 * everything for each in told), (
        "half of it, and the shards at the ends"
    )
