"""Select the paragraphs of a document that are English prose, and join them.

A reader (`markup.py`, `readers.py`) takes a document apart into blocks: paragraphs, headings, and
passages known to be literature. Here they are judged one by one, by what can be counted: words,
letters, the commonest words of English, the mark at the end. Tables of symbols, signatures, menus,
licences and other languages fail the count; no list of sites or authors is kept.
"""

from __future__ import annotations

import re
import string
import unicodedata
from collections.abc import Iterable
from enum import Enum
from typing import NamedTuple

LETTERS = string.ascii_letters.encode() + b" "

LEAST_WORDS = 6  # fewer is a label
SENTENCE_WORDS = 12  # fewer must end as a sentence does; else it is a caption or a table's cell
LEAST_LETTERS = 0.80  # of all characters, spaces counted as letters
# of all words: English prose has 0.4 to 0.5, technical prose 0.3, other languages under 0.1
LEAST_COMMON = 0.20
LEAST_DOCUMENT = 200  # characters; less is a stub

COMMON_WORDS = """a about after all also an and any are as at be because been before between but by
    can could do does each for from had has have he her here him his how i if in into is it its may
    more most must no not of on one only or other out over she should so some such than that the
    their them then there these they this those to two up was we were what when where which who will
    with would you"""
COMMON = frozenset(COMMON_WORDS.split())
WORD = re.compile(r"[^\W\d_]+(?:['\u2019][a-z]+)?")
SENTENCE_END = re.compile(r"[.!?:;][\"'\u201d\u2019)\]]*$")
INVISIBLE = dict.fromkeys(map(ord, "\u00ad\u200b\u200c\u200d\u2060\ufeff"))
BOILERPLATE = re.compile(
    r"^(?:©|copyright\b)|copyright ?(?:\(c\)|©|\d{4})|\(c\) ?copyright|\ball rights reserved"
    r"|\bpermission is (?:hereby )?granted|\bwithout (?:any |even the implied )?warranty|free "
    r"software; you can"
    r"|\b(?:distributed|licen[sc]ed|released|available) under (?:the|a) |\bpublic licen[sc]e|free "
    r"software foundation",
    re.IGNORECASE,
)
HEADING = re.compile(r"(?!.*::)(?:[\d.]+ )?[A-Z“\"'][^_*{}()<>=;\\/]{2,79}")


class Kind(Enum):
    """What a block is, which decides how it is judged."""

    PARAGRAPH = "prose, if it passes"
    HEADING = "kept where a paragraph follows it"
    WORK = "literature: kept as it is"


class Block(NamedTuple):
    """A part of a document, between two blank lines."""

    text: str
    kind: Kind = Kind.PARAGRAPH


def tidy(text: str) -> str:
    r"""Return text as one line: composed characters, single spaces, nothing invisible.

    Example:
        >>> tidy("A  long\n soft\u00ad ware\u00a0cafe\u0301")
        'A long soft ware café'
    """
    return " ".join(unicodedata.normalize("NFC", text).translate(INVISIBLE).split())


def fault(paragraph: str) -> str:
    """Return why a paragraph is dropped, in a word or two; empty if it is English prose.

    Example:
        >>> fault("The queue is called workqueue and the thread is called worker.")
        ''
        >>> fault("int wake_up(struct worker *w);"), fault("The remote PHY to be added")
        ('not English', 'a fragment')
        >>> fault("Der Kern ruft die Funktion auf, sobald der Faden bereit ist.")
        'not English'
    """
    # Cheap counts come first.
    words = WORD.findall(paragraph)
    if len(words) < LEAST_WORDS:
        return "few words"
    # One byte to a character: what is left after deleting letters counts the others.
    others = paragraph.encode("ascii", "replace").translate(None, LETTERS)
    if len(paragraph) - len(others) < LEAST_LETTERS * len(paragraph):
        return "few letters"
    if sum(word.lower() in COMMON for word in words) < LEAST_COMMON * len(words):
        return "not English"
    if BOILERPLATE.search(paragraph):
        return "boilerplate"
    if len(words) < SENTENCE_WORDS and not SENTENCE_END.search(paragraph):
        return "a fragment"
    return ""


def document(blocks: Iterable[Block], seen: set[str]) -> str:
    r"""Return the text of a document: its prose blocks, separated by blank lines; empty if too
    little is left.

    Args:
        blocks: the document as a reader took it apart.
        seen: paragraphs that an earlier document has; those of this one are added, and no paragraph
            is kept twice.

    Example:
        >>> text = Block("It is so because it was so. " * 8)
        >>> heading, last = Block("Why", Kind.HEADING), Block("See also", Kind.HEADING)
        >>> blocks = [Block("Menu"), heading, text, last]
        >>> document(blocks, set())[:34]
        'Why\n\nIt is so because it was so. I'
        >>> document(blocks, {tidy(blocks[2].text)})
        ''
    """
    # A heading is kept back until prose follows it: headings of tables and menus vanish with them.
    lines_out: list[str] = []
    heading = ""
    for text, kind in blocks:
        if kind is Kind.WORK:
            lines_out.append(text)
            continue
        line = tidy(text)
        if kind is Kind.HEADING:
            heading = line if HEADING.fullmatch(line) else ""
        elif line not in seen and not fault(line):
            seen.add(line)
            lines_out += [heading, line] if heading else [line]
            heading = ""
    whole = "\n\n".join(lines_out)
    return whole if len(whole) >= LEAST_DOCUMENT else ""
