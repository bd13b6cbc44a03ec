"""Say how fast a codec is on this machine, and warn where a link is faster."""

from __future__ import annotations

from typing import Any

from thinwire.text.words import name_and_settings


def asked_gbits(spec: str) -> float | None:
    """Return the rate of the link that a recipe is asked for, in Gb/s, if it says one.

    Example:
        >>> asked_gbits("for_link,gbits=100"), asked_gbits("diloco,period=60")
        (100.0, None)
    """
    pairs = dict(piece.split("=", 1) for piece in name_and_settings(spec)[1])
    return float(pairs["gbits"]) if "gbits" in pairs else None


def speed_words(facts: dict[str, Any]) -> str:
    """Say how long a codec takes, and up to which link that saves time.

    Args:
        facts: those of `planner.codecs.Speed`, and "gbits", the link that is asked for or `None`.
    """
    import torch

    ways = [(facts["encode_ns"], "encode"), (facts["decode_ns"], "decode")]
    text = ", ".join(f"{ns:.2g} ns a value to {way}" for ns, way in ways if ns is not None)
    text += f" (float32, {torch.get_num_threads()} threads of this machine)"
    pays, gbits = facts["pays_below_gbits"], facts["gbits"]
    if pays is None:
        return f"{text}; it saves no bytes."
    text += f"; it saves time on links below {rate(pays)} Gb/s."
    if gbits is None or gbits <= pays:
        return text
    return (
        f"{text} WARNING: a link of {gbits:g} Gb/s is faster than this codec. Give more threads "
        "(OMP_NUM_THREADS), encode on a GPU, or send 16 bits: cast('bf16')."
    )


def rate(gbits: float | None) -> str:
    """Return a rate in Gb/s as a few digits.

    Example:
        >>> rate(None), rate(8.25), rate(1234.5)
        ('–', '8.2', '1,234')
    """
    return "–" if gbits is None else f"{gbits:,.{1 if gbits < 100 else 0}f}"
