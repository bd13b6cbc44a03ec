"""Fetch data sets from packages of Debian and PyPI, as records: images, sounds and ratings.

    digits           1,797 images of digits, 8 × 8              scikit-learn's wheel
                     BSD-3-Clause
    fashion_mnist    70,000 images of clothes, 28 × 28          Debian: dataset-fashion-mnist    MIT
    prompts          some 570 voice prompts, with their names  asterisk-core-sounds-en-wav
                     CC-BY-SA-3.0
    movielens        100,000 ratings of films                   recbole's wheel
                     research only: never hand it on

They are fetched once, through apt-get and pip as they are set up on the machine, and kept in the
cache; none of it is part of Thinwire.
"""

from __future__ import annotations

import gzip
import io
import struct
import tempfile
import wave
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from thinwire.data.corpus.packages import Registries, Shop, files
from thinwire.data.loaders.records import Columns, Records, cached
from thinwire.errors import DataError
from thinwire.text.words import near

Files = Iterator[tuple[str, bytes]]


@dataclass(frozen=True)
class Packaged:
    """A data set in a package: its registry, its package (`name==version` at PyPI), its reader and
    its licence."""

    registry: str
    package: str
    read: Callable[[Files], Columns]
    licence: str
    about: str


def digits(inside: Files) -> Columns:
    """Return `pixels` (1797, 8, 8) uint8 from 0 to 16, and `digit`."""
    table = np.loadtxt(
        io.BytesIO(gzip.decompress(_one(inside, "/digits.csv.gz"))), delimiter=",", dtype=np.uint8
    )
    return {"pixels": table[:, :-1].reshape(-1, 8, 8), "digit": table[:, -1].astype(np.int64)}


def fashion_mnist(inside: Files) -> Columns:
    """Return `pixels` (70000, 28, 28) uint8 and `kind`; the last 10,000 are the test images."""
    # Files are found by name wherever the package puts them; training images come before test
    # images.
    files_by_name = {
        path.rpartition("/")[2]: data for path, data in inside if path.endswith("-ubyte.gz")
    }

    def both(what: str) -> NDArray[Any]:
        return np.concatenate(
            [
                _idx(gzip.decompress(files_by_name[f"{part}-{what}-ubyte.gz"]))
                for part in ("train", "t10k")
            ]
        )

    pixels, kind = both("images-idx3"), both("labels-idx1")
    return {"pixels": pixels, "kind": kind.astype(np.int64)}


def prompts(inside: Files) -> Columns:
    """Return `sound`, ragged int16 at 8 kHz, and `name`, ragged bytes: approximately the words
    in it."""
    sounds, names = [], []
    # Sorted, so that samples have one order on every machine.
    for path, data in sorted(each for each in inside if each[0].endswith(".wav")):
        with wave.open(io.BytesIO(data)) as file:
            if (file.getnchannels(), file.getsampwidth(), file.getframerate()) != (1, 2, 8000):
                raise ValueError(f"{path} is no mono sound of 16 bits at 8 kHz")
            frames = np.frombuffer(file.readframes(file.getnframes()), dtype="<i2")
        if len(frames):  # silence/0.wav and its like
            sounds.append(frames)
            names.append(
                np.frombuffer(
                    path.partition("/en_US_f_Allison/")[2].removesuffix(".wav").encode(),
                    dtype=np.uint8,
                )
            )
    return {"sound": sounds, "name": names}


def movielens(inside: Files) -> Columns:
    """Return `user` and `item` counted from 0, `rating` from 1 to 5, and `time` in seconds, sorted
    by time."""
    lines = _one(inside, "/ml-100k.inter").decode().splitlines()[1:]
    table = np.array([line.split("\t") for line in lines]).astype(np.float64).astype(np.int64)
    table = table[np.argsort(table[:, 3], kind="stable")]
    users, items = (
        np.unique(table[:, column], return_inverse=True)[1].astype(np.int64) for column in (0, 1)
    )
    return {
        "user": users,
        "item": items,
        "rating": table[:, 2].astype(np.float32),
        "time": table[:, 3],
    }


PACKAGED = {
    "digits": Packaged(
        "pypi", "scikit-learn==1.9.1", digits, "BSD-3-Clause", "images of digits, 8 × 8"
    ),
    "fashion_mnist": Packaged(
        "debian", "dataset-fashion-mnist", fashion_mnist, "MIT", "images of clothes, 28 × 28"
    ),
    "prompts": Packaged(
        "debian", "asterisk-core-sounds-en-wav", prompts, "CC-BY-SA-3.0", "voice prompts at 8 kHz"
    ),
    "movielens": Packaged(
        "pypi", "recbole==1.2.1", movielens, "research only: never hand it on", "ratings of films"
    ),
}


def packaged(name: str, cache: Path | None = None, shop: Shop | None = None) -> Records:
    """Return a data set from the cache; it is fetched first if it is not there.

    Args:
        name: one of `PACKAGED`.
        cache: a folder to keep it in, by default `cache_folder()`.
        shop: where packages come from; the default is apt-get and pip.

    Raises:
        DataError: there is no such set, its package cannot be had, or holds something else than it
            used to.
    """
    if name not in PACKAGED:
        raise DataError(
            f"no data set is called {name!r}{near(name, PACKAGED)} There are: {', '.join(PACKAGED)}"
        )
    entry = PACKAGED[name]

    # Whatever a changed package raises becomes one line; files are removed with the folder.
    def make() -> Columns:
        seller = shop or Registries()
        package = seller.find(entry.registry, entry.package)
        with tempfile.TemporaryDirectory(prefix="thinwire-") as folder:
            archive = seller.download(package, Path(folder))
            try:
                return entry.read(files(archive))
            except (ValueError, LookupError, EOFError, OSError, wave.Error, struct.error) as error:
                if isinstance(error, DataError):
                    raise
                raise DataError(
                    f"{package.name} {package.version} does not hold {name} as it used to "
                    f"({type(error).__name__}: {error}): it is another "
                    "package than thinwire knows; please report it"
                ) from error

    return cached(name, entry.package, make, cache)


def _one(inside: Files, end: str) -> bytes:
    """Return the file whose path ends so."""
    for path, data in inside:
        if path.endswith(end):
            return data
    raise LookupError(f"no file ends in {end}")


def _idx(data: bytes) -> NDArray[Any]:
    """Read an array of bytes in the format of MNIST: 0, 0, 8, the number of dimensions, the
    dimensions, the values."""
    if data[:3] != b"\0\0\x08":
        raise ValueError("no file of bytes in the IDX format")
    shape = struct.unpack(f">{data[3]}I", data[4 : 4 + 4 * data[3]])
    return np.frombuffer(data, dtype=np.uint8, offset=4 + 4 * data[3]).reshape(shape)
