"""Write numbers and words for a page, and give each contestant its colour and mark."""

from __future__ import annotations

import html
import math
import re
from dataclasses import dataclass

COLOURS = 6  # --c0 … --c5 of the page; the baseline takes the ink's own
MARKERS = {  # matplotlib's name: the same shape in a 34 × 14 swatch
    "o": "M13.2 7a3.8 3.8 0 1 0 7.6 0a3.8 3.8 0 1 0 -7.6 0z",
    "s": "M13.5 3.5h7v7h-7z",
    "^": "M17 2.6l4.4 7.8h-8.8z",
    "D": "M17 2.4l4.6 4.6l-4.6 4.6l-4.6-4.6z",
    "v": "M17 11.4l4.4-7.8h-8.8z",
    "P": "M15.6 3h2.8v2.6h2.6v2.8h-2.6v2.6h-2.8v-2.6h-2.6v-2.8h2.6z",
    "p": "M17 2.8l4.2 3l-1.6 5h-5.2l-1.6-5z",
}


def clean(text: object) -> str:
    """Replace characters that no page can hold: controls and halves of pairs."""
    return re.sub(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]", "\ufffd", str(text))


def escape(text: object) -> str:
    """Escape words for a page, also inside of an attribute.

    Example:
        >>> escape('<b title="x">')
        '&lt;b title=&quot;x&quot;&gt;'
    """
    return html.escape(clean(text))


def sig(value: float, digits: int = 3) -> str:
    """Write a number in so many significant digits, with commas between thousands.

    Example:
        >>> sig(0.012345), sig(12345.6), sig(3.0), sig(2e-9), sig(0)
        ('0.0123', '12,346', '3.00', '2.0e-09', '0')
    """
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    if abs(value) < 1e-4 or abs(value) >= 1e9:
        return f"{value:.1e}"
    return f"{value:,.{max(0, digits - 1 - math.floor(math.log10(abs(value))))}f}"


@dataclass(frozen=True)
class Look:
    """Say how a contestant looks in every picture.

    number: its place among all; rival: it is another library's.
    """

    number: int
    rival: bool
    baseline: bool = False

    @property
    def ink(self) -> str:
        """Return the page's colour variable."""
        return "ink" if self.baseline else f"c{self.number % COLOURS}"

    @property
    def marker(self) -> str:
        """Return matplotlib's name of its mark."""
        return list(MARKERS)[self.number % len(MARKERS)]

    def swatch(self) -> str:
        """Draw a short piece of its line, for legends and tables."""
        dashes, fill = (
            (' stroke-dasharray="5 3"', "var(--paper)")
            if self.rival
            else ("", f"var(--{self.ink})")
        )
        return (
            '<svg class="swatch" width="34" height="14" viewBox="0 0 34 14" aria-hidden="true" '
            f'style="stroke: var(--{self.ink})">'
            f'<path d="M1 7H33" fill="none" stroke-width="2.2"{dashes}/>'
            f'<path d="{MARKERS[self.marker]}" stroke-width="1.4" style="fill: {fill}"/></svg>'
        )
