"""Split documentation into blocks: HTML by its elements, Perl's pod by its commands, vim's help by
its layout."""

from __future__ import annotations

import re
from collections.abc import Iterator

from thinwire.data.corpus.prose import Block, Kind

# Where a page keeps its words, first match first: Sphinx's two themes, LibreOffice's help, HTML5,
# anything else.
MAIN = ("[role=main]", "div.body", "#DisplayArea", "main", "article", "body")

# What is not prose wherever it stands: code, signatures, drawings, menus, tables of contents, legal
# notices.
DROPPED = (
    "script, style, noscript, nav, header, footer, aside, form, button, select, svg, math, pre, "
    "[role=navigation], [role=search], "
    ".programlisting, .synopsis, .funcsynopsis, .highlight, .sig, .headerlink, .indexterm, "
    ".related, .sphinxsidebar, .navheader, .navfooter, .spirit-nav, .menu, .nosearch, .bug, "
    ".toc, .toctree-wrapper, .contents, .fancy_toc, .index, .genindex-jumpbox, .copyright, "
    ".copyright-footer, .legalnotice, .authorgroup"
)
BLOCKS = "p, li, dd, td, th, div, section, blockquote, caption, figcaption, tr, hr"
HEADINGS = "h1, h2, h3, h4, h5, h6, dt"
CUT, TITLE = (
    "\x1e",
    "\x1f",
)  # ASCII's own marks for the end of a record and of a unit; no page has them


def decode(data: bytes) -> str:
    """Decode bytes as UTF-8 if they are valid, else as Windows-1252, which old pages use whatever
    they declare.

    Example:
        >>> decode("naïve".encode()), decode(b"na\\xefve")
        ('naïve', 'naïve')
    """
    try:
        return data.decode()
    except UnicodeDecodeError:
        return data.decode("cp1252", errors="replace")


def html(data: bytes) -> list[Block]:
    """Return the paragraphs and headings of a page; list items, cells and definitions count as
    paragraphs.

    Example:
        >>> page = b"<nav>Home</nav><h1>Trees</h1><p>They <b>grow</b>.<pre>grow()</pre><ul><li>Oak"
        >>> [block.text for block in html(page)]
        ['Trees', 'They grow.', 'Oak']
    """
    from selectolax.lexbor import LexborHTMLParser

    # 1. The main part of the page, without menus, code and the like.
    tree = LexborHTMLParser(decode(data))
    main = next((node for selector in MAIN if (node := tree.css_first(selector)) is not None), None)
    if main is None:
        return []
    for node in main.css(DROPPED):
        node.decompose()
    # 2. Mark where blocks begin and end, and which are headings, with characters that no page has.
    for node in main.css("br"):
        node.insert_before(" ")
    for node in main.css(BLOCKS):
        node.insert_before(CUT)
        node.insert_after(CUT)
    for node in main.css(HEADINGS):
        node.insert_before(CUT + TITLE)
        node.insert_after(CUT)
    # 3. Cut the text at the marks.
    sections = main.text().split(CUT)
    return [
        Block(text, Kind.HEADING if piece.startswith(TITLE) else Kind.PARAGRAPH)
        for piece in sections
        if (text := " ".join(piece.replace(TITLE, "").split()))
    ]


ANGLES = re.compile(r"[BCFILS]<(?:<+ (?P<wide>.*?) >+|(?P<text>[^<>]*))>", re.DOTALL)
ESCAPES = {"lt": "<", "gt": ">", "sol": "/", "verbar": "|", "quot": '"', "amp": "&"}


def pod(data: bytes) -> list[Block]:
    r"""Return the paragraphs and headings of Perl's pod; indented paragraphs are code and are
    skipped.

    Example:
        >>> page = b"=head1 NAME\n\nThe C<sort> of L<lists|perl/sort>.\n\n  sort @list;\n\n=cut\n"
        >>> pod(page)
        [Block(text='NAME', kind=<Kind.HEADING...>), Block(text='The sort of lists.', ...)]
    """
    blocks = []
    shown = True  # between =begin and =end stands another language
    for paragraph in re.split(r"\n\s*\n", decode(data)):
        if paragraph.startswith("="):
            command, _, rest = paragraph[1:].partition(" ")
            shown = command.split()[0] != "begin" and (shown or command.split()[0] == "end")
            if shown and re.match(r"head\d|item", command):
                blocks.append(Block(_unmarked(rest.removeprefix("* ")), Kind.HEADING))
        elif shown and paragraph.strip() and not paragraph[0].isspace():
            blocks.append(Block(_unmarked(paragraph)))
    return [block for block in blocks if block.text]


def _unmarked(text: str) -> str:
    """Remove pod's formatting codes, from the innermost outwards."""
    text = re.sub(r"[XZ]<[^<>]*>", "", text)
    text = re.sub(
        r"E<(\w+)>", lambda match: f"\x1e{match[1]}\x1f", text
    )  # E<lt> must not open a code
    before = None
    while before != text:
        before = text
        text = ANGLES.sub(_inside, text)
    text = re.sub("\x1e(\\w+)\x1f", lambda match: ESCAPES.get(match[1], ""), text)
    return " ".join(text.split())


def _inside(match: re.Match[str]) -> str:
    text = match["wide"] if match["text"] is None else match["text"]
    if not match[0].startswith("L"):
        return str(text)
    shown, bar, _ = str(text).partition("|")
    return shown if bar or "://" in shown else shown.replace("/", " ").replace('"', "").strip()


def vim(data: bytes) -> Iterator[Block]:
    r"""Return the paragraphs of vim's help; text that a tab indents is an example or a table and is
    skipped.

    Example:
        >>> page = b"<pre>*<b>04.2</b>*\tText\n\nIt <b>acts</b>\nat once.\n\n\tx\tdelete\n</pre>"
        >>> list(vim(page))
        [Block(text='It acts at once.', ...)]
    """
    from selectolax.lexbor import LexborHTMLParser

    page = LexborHTMLParser(decode(data)).css_first("pre")
    text = (
        re.sub(r"\*[^\s*]+\*|\|(?=\S)|(?<=\S)\|", "", page.text()) if page is not None else ""
    )  # *targets* and |links|
    for paragraph in re.split(r"\n\s*\n|^(?=-\s)|^[=-]{20,}$", text, flags=re.MULTILINE):
        lines = [line.strip() for line in paragraph.splitlines() if not re.match(r"\t|  {3}", line)]
        if any(lines):
            yield Block(" ".join(filter(None, lines)))
