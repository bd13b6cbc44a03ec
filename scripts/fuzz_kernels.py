"""Fuzz the CPU kernels: random bytes and sizes, under AddressSanitizer and
UndefinedBehaviorSanitizer.

    python scripts/fuzz_kernels.py --seconds 600           # each build that this processor runs
    python scripts/fuzz_kernels.py --quick --seconds 2     # the best build alone, as the tests do

The exit code is 1 where a build fails.

It compiles tests/kernels/fuzz.cpp with the kernels of src/thinwire/kernels/cpu, so it needs a C++
compiler with both sanitizers.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
SOURCES = sorted((ROOT / "src" / "thinwire" / "kernels" / "cpu").glob("*.cpp"))
FLAGS = [
    "-std=c++17",
    "-g1",  # lines, for the report
    "-pthread",
    "-ffp-contract=off",
    "-fsanitize=address,undefined",
    "-fno-sanitize-recover=all",
]
LEVELS = {
    "baseline": [],
    "avx2": ["-mavx2", "-mf16c"],
    "avx512": ["-mavx2", "-mf16c", "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl"],
}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=600, help="for each build")
    parser.add_argument("--seed", type=int, default=int(time.time()) << 20)
    parser.add_argument(
        "--quick",
        action="store_true",
        help="only the best build for this processor, not optimised: it compiles in a tenth of the "
        "time",
    )
    options = parser.parse_args()
    from thinwire.kernels import native

    levels = [level for level in native.available() if level != "torch"] or ["baseline"]
    if options.quick:
        return fuzzed(levels[-1], options.seconds, options.seed, "-O0")
    return max(fuzzed(level, options.seconds, options.seed) for level in levels)


def fuzzed(level: str, seconds: float, seed: int, optimised: str = "-O1") -> int:
    """Build one level with sanitizers and run it; return its exit code."""
    compiler = (
        os.environ.get("CXX")
        or shutil.which("c++")
        or shutil.which("g++")
        or shutil.which("clang++")
    )
    if compiler is None:
        sys.exit("no C++ compiler is here: install g++ or clang, or set CXX")
    with tempfile.TemporaryDirectory() as folder:
        fuzz = Path(folder) / "fuzz"
        source = ROOT / "tests" / "kernels" / "fuzz.cpp"
        subprocess.run(
            [
                compiler,
                *FLAGS,
                optimised,
                *LEVELS[level],
                *map(str, SOURCES),
                str(source),
                "-o",
                str(fuzz),
            ],
            check=True,
        )
        done = subprocess.run(
            [str(fuzz), str(seconds), str(seed)], capture_output=True, text=True, check=False
        )
        said = done.stdout.strip() if done.returncode == 0 else done.stderr[-4000:]
        print(f"{level}: {said}", flush=True)
        return int(done.returncode != 0)


if __name__ == "__main__":
    sys.exit(main())
