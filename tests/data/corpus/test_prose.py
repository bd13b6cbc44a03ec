"""What is kept of a page, a manual, a novel and a dictionary: prose under its headings, and nothing
twice."""

from __future__ import annotations

import gzip
import struct
import zlib

import pytest

from tests.data.page import MORE, PROSE
from thinwire.data.corpus.prose import Block, Kind, document, fault
from thinwire.data.corpus.readers import novels, webster


@pytest.mark.parametrize(
    ("paragraph", "why"),
    [
        (PROSE, ""),
        ("Is this kept, since it is a question?", ""),
        ("Home, Up, Next", "few words"),
        (
            "WQ_UNBOUND 0x0002 | WQ_FREEZABLE 0x0004 | WQ_MEM_RECLAIM 0x0008 | all of the flags",
            "few letters",
        ),
        (
            (
                "Le noyau appelle la fonction quand le fil est prêt et la file est vide, sans "
                "plus attendre."
            ),
            "not English",
        ),
        (
            "Это предложение написано на другом языке и потому не остаётся здесь вовсе.",
            "few letters",
        ),
        (
            (
                "You may copy this under the terms of the GNU General Public License as it was "
                "published."
            ),
            "boilerplate",
        ),
        (
            (
                "© 2010 by those who have had a part in the work on it, and in all of its "
                "translations."
            ),
            "boilerplate",
        ),
        ("The device that is to be added", "a fragment"),
    ],
)
def test_a_paragraph_is_judged_by_what_can_be_counted(paragraph: str, why: str) -> None:
    assert fault(paragraph) == why


def test_no_paragraph_comes_twice() -> None:
    seen: set[str] = set()
    first = document([Block(PROSE), Block(MORE), Block(" ".join(PROSE.split(" ")))], seen)
    assert first == f"{PROSE}\n\n{MORE}"
    assert (
        document(
            [Block(PROSE), Block(f"{MORE} So it goes on, as it has always gone on. {PROSE}")], seen
        ).count(PROSE)
        == 1
    )


def test_a_heading_without_prose_goes() -> None:
    assert document(
        [
            Block("Above", Kind.HEADING),
            Block("Below", Kind.HEADING),
            Block(PROSE + MORE),
            Block("End", Kind.HEADING),
        ],
        set(),
    ) == (f"Below\n\n{PROSE}{MORE}")


def r_lines(*texts: str) -> bytes:
    """A character vector as R saves it in a lazy-load data base."""
    strings = b"".join(struct.pack(">II", 0x00040009, len(text)) + text.encode() for text in texts)
    stream = (
        b"X\n"
        + struct.pack(">IIII", 3, 0, 0, 5)
        + b"UTF-8"
        + struct.pack(">II", 16, len(texts))
        + strings
    )
    return struct.pack(">I", len(stream)) + zlib.compress(stream)


def test_novels_are_read_from_r_without_words_of_editors() -> None:
    data = r_lines("EMMA", "", "Emma Woodhouse, handsome,", "clever, and rich") + r_lines(
        "PERSUASION", "", "Sir Walter", "A NOTE ON THE TEXT", "", "x"
    )
    assert [[block.text for block in work] for work in novels(data)] == [
        ["EMMA", "Emma Woodhouse, handsome, clever, and rich"],
        ["PERSUASION", "Sir Walter"],
    ]


def test_a_dictionary_entry_is_a_word_and_its_meanings() -> None:
    entries = r"""
Abb'e \Ab"b['e]`\ ([.a]b"b[asl]`), n. [F. abb['e]. See {Abbot}.]
   1. The word of a {French} abb['e]. [Obs.] --Ash.
      [1913 Webster]

   2. A copy.
      [WordNet 1.5 +PJC]

   3. Another. [1913 Webster] Abbess

Abbess \Ab"bess\, adj.
   A nun.
"""
    [[first, second]] = webster(gzip.compress(entries.encode()))
    assert (first.text, second.text) == (
        "Abb'e: The word of a French abbé. --Ash. Another.",
        "Abbess: A nun.",
    )
