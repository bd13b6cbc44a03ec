r"""Cut a long text into pieces, at positions where a tokenizer would cut it anyway.

Tokenizers of the GPT-2 kind first cut a text into words: a run of white space gives its last
character to the next word, or leaves it as a word of its own, and no word is merged with another.
So a cut right before the last white space of a run changes no id:

    the end.\n | \nThe next paragraph         the end. | \nThe next line         the end | of it

Other kinds (Llama 3's `\s*[\r\n]+`, SentencePiece's mark before the first word) differ by a token a
piece, one in many thousands.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

PIECE = (
    1 << 17
)  # characters: thousands of words, yet enough pieces in a few MB to keep all cores busy

# Best first. \S is any character that Unicode does not call white space, as in the tokenizers' own
# patterns.
CUTS = tuple(map(re.compile, (r"(?<=\n)\n(?=\S)", r"\n(?=\S)", r" (?=\S)")))


def cut_text(text: str, size: int = PIECE) -> Iterator[str]:
    r"""Yield pieces of `size` to twice `size` characters (the last may be shorter) that together
    are the text.

    Example:
        >>> list(cut_text("One paragraph.\n\nAnother,\nof two lines.", size=12))
        ['One paragraph.\n', '\nAnother,\nof two lines.']
    """
    at = 0
    while len(text) - at > 2 * size:
        window = at + size, at + 2 * size
        matches = (pattern.search(text, *window) for pattern in CUTS)
        # One word as long as that is cut anywhere.
        end = next((match.start() for match in matches if match), at + 2 * size)
        yield text[at:end]
        at = end
    if at < len(text):
        yield text[at:]
