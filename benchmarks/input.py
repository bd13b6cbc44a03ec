"""Does training wait for input: bare readers beside other libraries, starts from the cache, waits
in `thinwire train`, a 100 Mb/s line.

    PYTHONPATH=RIVALS python -m benchmarks.input --folder SCRATCH \
        --json benchmarks/results/input.json [PART …]

Parts: readers (each in a process of its own, rounds in turn, medians of tokens to a processor
second), start (of 100 MB, in fresh processes), train (the share that `thinwire train` waits),
memory (over an epoch), building (memory, of a text's ids), wire-first and wire-later,
wire-100-first and wire-100-later (a packed set from an HTTP server over an emulated 100 Mb/s line;
they need `thinwire lab`). Parts that stand in the JSON file and are not asked for are kept. RIVALS:
a folder with torchdata, litdata and mosaicml-streaming (`pip install --no-deps --target`), so that
none brings another torch.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.common import Neighbours, emit, parser, table
from benchmarks.input_readers import READERS

ROUNDS, SECONDS = 3, 0.7
ALONE = {
    "OMP_NUM_THREADS": "1",
    "PYTHONPATH": "",
}  # not with the rivals, whose packages others would find
LIBRARIES = ("torch", "torchdata", "datasets", "litdata", "mosaicml-streaming")
MODEL = "llama-nano"
HOSTS = """
if [ $RANK = 0 ]
then {serve} & server=$!; while [ ! -e {out}.done ]; do sleep 0.3; done; kill $server
else unset RANK WORLD_SIZE LOCAL_RANK LOCAL_WORLD_SIZE GROUP_RANK; sleep 4
{learn}; code=$?; touch {out}.done; exit $code
fi
"""
START = """
import json, sys, time
import torch
from transformers import AutoTokenizer, PreTrainedTokenizerFast
from pathlib import Path
from thinwire.data import Reader, prepare
begun = time.perf_counter()
_, tokens = prepare(sys.argv[1], "byte", ["<|endoftext|>"], Path(sys.argv[2]))
prepared = time.perf_counter() - begun
begun = time.perf_counter()
tokens.batches(Reader(8), length=129).at(0)
print(json.dumps([prepared, time.perf_counter() - begun, len(tokens.train)]))
"""
FETCH = """
import json, sys, time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from thinwire.data import SetReader
begun, source = time.perf_counter(), SetReader(sys.argv[1], Path(sys.argv[2]), 10**10)
with ThreadPoolExecutor(4) as pool:
    list(pool.map(source.ids, source.set.train))
fetched = {"fetched_bytes": source.fetched_bytes, "fetch_s": time.perf_counter() - begun}
Path(sys.argv[3]).write_text(json.dumps(fetched))
"""
BUILD = """
import json, sys, threading, time
from pathlib import Path
import torch
from transformers import AutoTokenizer, PreTrainedTokenizerFast
from thinwire.data import prepare
def anonymous():
    line = next(line for line in open("/proc/self/status") if line.startswith("RssAnon"))
    return int(line.split()[1]) / 1024
before, seen = anonymous(), []
def watch():
    while True:
        seen.append(anonymous())
        time.sleep(0.01)
threading.Thread(target=watch, daemon=True).start()
prepare(sys.argv[1], "byte", ["<|endoftext|>"], Path(sys.argv[2]))
print(json.dumps([round(before, 1), round(max(seen), 1)]))
"""
MEMORY = """
import json, sys
from pathlib import Path
import torch
from thinwire.data import Prefetch, Reader, SetReader, Streamed
def anonymous():
    line = next(line for line in open("/proc/self/status") if line.startswith("RssAnon"))
    return int(line.split()[1]) / 1024
source = SetReader(sys.argv[1], Path(sys.argv[2]), 10**10)
stream = Streamed(source, Reader(32), length=129, overlap=1)
steps, seen = stream.order.size // 32, []
with Prefetch(stream.at) as ahead:
    for step in range(steps):
        ahead.at(step)
        if step % (steps // 40) == 0:
            seen.append(round(anonymous(), 1))
print(json.dumps(seen))
"""


def fresh(code: str, *arguments: str) -> Any:
    """What a fresh process prints at its end, as JSON."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, *arguments],
        check=True,
        capture_output=True,
        text=True,
    )
    return json.loads(done.stdout.strip().splitlines()[-1])


def corpus(folder: Path, megabytes: int) -> Path:
    """A jsonl of so many megabytes, in pieces of the bundled works, each with a number so that no
    two are the same."""
    from thinwire.data.corpus.english import works

    path = folder / f"corpus-{megabytes}.jsonl"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        text = b"".join(works()).decode()
        with path.with_suffix(".partial").open("w", encoding="utf-8") as file:
            number = 0
            while file.tell() < megabytes * 10**6:
                begin = number * 4000 % len(text)
                file.write(
                    json.dumps(
                        {"text": f"{number}: {text[begin : begin + 4000]}"}, ensure_ascii=False
                    )
                    + "\n"
                )
                number += 1
        path.with_suffix(".partial").rename(path)
        time.sleep(2.5)  # a file that has just been written is not stamped
    return path


def readers(folder: Path) -> dict[str, Any]:
    """Tokens a second of wall and processor time, by reader."""
    from thinwire.data.corpus.english import works

    place = folder / "readers"
    missing: dict[str, str] = {}
    if not (place / "done").exists():
        from benchmarks.input_readers import prepare

        place.mkdir(parents=True, exist_ok=True)
        text = b"".join(works())
        missing = prepare(
            place,
            [
                f"{number}: ".encode() + text[number * 4000 % len(text) :][:4000]
                for number in range(5000)
            ],
        )
        (place / "done").write_text("")
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in READERS}
    for turn in range(ROUNDS):
        for name in list(READERS)[:: 1 if turn % 2 else -1]:
            command = [
                sys.executable,
                "-W",
                "ignore",
                "-m",
                "benchmarks.input_readers",
                name,
                str(place),
                str(SECONDS),
            ]
            done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
            if done.returncode:
                missing[name] = (done.stderr.strip().splitlines() or ["?"])[-1][:200]
            else:
                runs[name].append(json.loads(done.stdout.strip().splitlines()[-1]))
    rows = {}
    for name, each in runs.items():
        if each:
            rows[name] = {
                "tokens_per_cpu_s": statistics.median(
                    run["tokens"] / max(run["cpu_s"], 0.01) for run in each
                ),
                "tokens_per_s": statistics.median(run["tokens"] / run["wall_s"] for run in each),
                "best_tokens_per_s": max(run["tokens"] / run["wall_s"] for run in each),
            }
    shown = [
        [name, row["tokens_per_cpu_s"] / 1e6, row["tokens_per_s"] / 1e6]
        for name, row in rows.items()
    ]
    table(["reader", "M tokens / cpu s", "M tokens / s"], shown)
    versions = {name: importlib.metadata.version(name) for name in LIBRARIES if _there(name)}
    return {
        "rounds": ROUNDS,
        "seconds": SECONDS,
        "versions": versions,
        "rows": rows,
        "missing": missing,
    }


def _there(name: str) -> bool:
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def start(folder: Path) -> dict[str, Any]:
    """Seconds from a text to its first batch: the first time, and from the cache; without
    imports."""
    rows = {}
    for name, source in (("bundled", "bundled"), ("100 MB of jsonl", str(corpus(folder, 100)))):
        cache = folder / "cache-start" / name.split()[0]
        subprocess.run(["rm", "-rf", str(cache)], check=True)
        first = fresh(START, source, str(cache))
        again = [fresh(START, source, str(cache)) for _ in range(3)]
        rows[name] = {
            "tokens": first[2],
            "first_s": first[0] + first[1],
            "again_s": statistics.median(each[0] + each[1] for each in again),
        }
    table(
        ["text", "first start, s", "from the cache, s"],
        [[name, row["first_s"], row["again_s"]] for name, row in rows.items()],
    )
    return rows


def _pack(source: Path, out: Path, *more: str) -> None:
    command = [
        sys.executable,
        "-m",
        "thinwire",
        "data",
        "pack",
        "--data",
        str(source),
        "--out",
        str(out),
        *more,
    ]
    subprocess.run(command, check=True, capture_output=True)


def train(folder: Path) -> dict[str, Any]:
    """The share of its time that `thinwire train` waits for input."""
    packed, source = folder / "packed-100", corpus(folder, 100)
    if not packed.exists():
        _pack(source, packed)
    rows = {}
    for name, data in (
        ("bundled", "bundled"),
        ("100 MB of jsonl", str(source)),
        ("100 MB packed", f"set:{packed}"),
    ):
        command = [*_command(folder / "run", data, folder / "cache-train"), "--steps", "60"]
        subprocess.run(command, check=True, capture_output=True, env=os.environ | ALONE)
        rows[name] = _told(folder / "run")
    table(
        ["text", "input", "compute"],
        [[name, row["input"], row["compute"]] for name, row in rows.items()],
    )
    return rows


def _command(out: Path, data: str, cache: Path) -> list[str]:
    train = [
        sys.executable,
        "-m",
        "thinwire",
        "train",
        "--data",
        data,
        "--out",
        str(out),
        "--cache",
        str(cache),
        "--overwrite",
    ]
    return [
        *train,
        "--model",
        MODEL,
        "--strategy",
        "dense",
        "--sample",
        "0",
        "--save-every",
        "0",
        "--windows",
        "8",
    ]


def _told(out: Path) -> dict[str, float]:
    result = json.loads((out / "run.json").read_text())["result"]
    return {
        **result["time_shares"],
        "tokens_per_s": result["tokens_per_s"],
        "train_s": result["train_s"],
    }


def memory(folder: Path) -> dict[str, Any]:
    """Anonymous memory of a process through an epoch of 20 million tokens, in MiB, at forty
    moments."""
    seen = fresh(MEMORY, str(folder / "readers" / "set"), str(folder / "cache-memory"))
    settled = seen[len(seen) // 10 :]
    print(
        f"anonymous memory over an epoch: {seen[0]} MiB at its start, then {min(settled)} to "
        f"{max(settled)}, {settled[-1]} at its end"
    )
    return {"mib": seen}


def building(folder: Path) -> dict[str, Any]:
    """Anonymous memory of a process before and at the most while it makes the ids of a text, in
    MiB."""
    rows = {}
    for megabytes in (100, 1000):
        cache = folder / "cache-building"
        rows[f"{megabytes} MB"] = fresh(BUILD, str(corpus(folder, megabytes)), str(cache))
        subprocess.run(["rm", "-rf", str(cache)], check=True)
    table(["text", "MiB before", "MiB at the most"], [[name, *row] for name, row in rows.items()])
    return rows


def wire_first(folder: Path) -> dict[str, Any]:
    """`thinwire train` through the first epoch of a packed set on an HTTP server, over an emulated
    line of 100 Mb/s and 10 ms."""
    return _over_a_wire(folder, "1 MB, first epoch", 1, steps=230, cold=True)


def wire_later(folder: Path) -> dict[str, Any]:
    """The same once all of it is in the cache, as in a later epoch."""
    return _over_a_wire(folder, "1 MB, later epochs", 1, steps=115)


def wire_large_first(folder: Path) -> dict[str, Any]:
    """The same of 100 MB of text, 184 MB of ids: the first steps of its first epoch, which has
    22,500."""
    return _over_a_wire(folder, "100 MB, first steps", 100, steps=115, cold=True)


def wire_large_later(folder: Path) -> dict[str, Any]:
    """The same once the whole set was fetched over the line (with `FETCH`, in place of a first
    epoch of 80 minutes)."""
    return _over_a_wire(folder, "100 MB, all fetched before", 100, steps=115, fetch=True)


def _over_a_wire(
    folder: Path, name: str, megabytes: int, steps: int, cold: bool = False, fetch: bool = False
) -> dict[str, Any]:
    from thinwire.lab import Lab
    from thinwire.net import Wire, uniform

    packed, out, cache = (
        folder / f"packed-{megabytes}",
        folder / "run-wire",
        folder / f"cache-wire-{megabytes}",
    )
    if not packed.exists():
        _pack(corpus(folder, megabytes), packed, *(("--shard", "64") if megabytes == 1 else ()))
    if cold or fetch:
        subprocess.run(["rm", "-rf", str(cache)], check=True)
    # A step reads 32 rows of 128 tokens: an epoch of the small set has about 230 steps.
    learn = " ".join(
        [
            *_command(out, "set:http://10.77.0.1:8000/", cache),
            "--batch",
            "32",
            "--steps",
            str(steps),
        ]
    )
    if fetch:
        (folder / "fetch.py").write_text(FETCH)
        learn = (
            f"{sys.executable} {folder}/fetch.py http://10.77.0.1:8000/ {cache}/fetched "
            f"{folder}/fetched.json && {learn}"
        )
    script = HOSTS.format(
        serve=f"{sys.executable} -m tests.data.server {packed} 8000", learn=learn, out=out
    )
    Path(f"{out}.done").unlink(missing_ok=True)
    with Lab(uniform(2, bits_per_s=1e8, wire=Wire(latency_s=0.005))) as lab:
        done = lab.run(["bash", "-c", script], timeout=500, env=ALONE, on_line=lambda *_: None)
    if done.codes["host1"]:
        raise RuntimeError(f"thinwire train ended with {done.codes}")
    row = {"steps": steps, **_told(out)} | (
        json.loads((folder / "fetched.json").read_text()) if fetch else {}
    )
    table(
        ["over 100 Mb/s", "input", "compute", "input, s"],
        [[name, row["input"], row["compute"], row["input"] * row["train_s"]]],
    )
    return row


PARTS: dict[str, Callable[[Path], dict[str, Any]]] = {
    "readers": readers,
    "start": start,
    "train": train,
    "memory": memory,
    "building": building,
    "wire-first": wire_first,
    "wire-later": wire_later,
    "wire-100-first": wire_large_first,
    "wire-100-later": wire_large_later,
}


def main() -> None:
    arguments = parser(__doc__)
    arguments.formatter_class = argparse.RawDescriptionHelpFormatter
    arguments.add_argument(
        "parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; default: all"
    )
    arguments.add_argument(
        "--folder",
        type=Path,
        default=Path(tempfile.gettempdir(), "thinwire-input"),
        help="for corpora and caches, 2 GB",
    )
    args = arguments.parse_args()
    if unknown := set(args.parts) - set(PARTS):
        arguments.error(
            f"no part is called {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}"
        )
    folder = args.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    record: dict[str, Any] = {}
    if args.json is not None and args.json.exists():
        record = {
            key: value for key, value in json.loads(args.json.read_text()).items() if key in PARTS
        }
    for name in args.parts or PARTS:
        with Neighbours() as neighbours:
            figures = PARTS[name](folder)
        record[name] = {"neighbours_cores": round(neighbours.cores, 2), **figures}
        emit(args.json, record)


if __name__ == "__main__":
    main()
