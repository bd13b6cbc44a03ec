"""Read the bundled text: six novels, fourteen plays and the sonnets, 6 MB of public-domain English.

The works and their sources stand in `PROVENANCE.md` beside this file; `scripts/build_english.py`
rebuilds the text.
"""

from __future__ import annotations

import gzip
import hashlib
import zlib
from functools import lru_cache
from importlib.resources import files

from thinwire.data.corpus.held import split

# Of the unpacked text: another zlib packs the same text into other bytes.
SHA256 = "26daae18efc4fc5ae99337bde501e1d3bc6446678f50df435d949e07180ad9fb"


@lru_cache(maxsize=1)
def english() -> tuple[bytes, bytes]:
    """Return the bundled text as UTF-8 bytes: a part to train on and a part to validate on.

    The validation part is the last 1/20 of every work, from the first paragraph that begins there,
    so both parts hold prose, drama and verse, and no paragraph lies in both.

    Returns:
        `(train, validation)`, about 5.7 MB and 0.3 MB; nearly all of it ASCII.

    Raises:
        ValueError: the installed file is damaged.

    Example:
        >>> train, validation = english()
        >>> train[:21].decode()
        'SENSE AND SENSIBILITY'
        >>> len(train), len(validation)
        (5674092, 291461)
    """
    parts = [split(work) for work in works()]
    return b"\n".join(train for train, _ in parts), b"\n".join(
        validation for _, validation in parts
    )


def works() -> tuple[bytes, ...]:
    """Return the 21 complete works, each as one document.

    Raises:
        ValueError: the installed file is damaged.

    Example:
        >>> [work.partition(b"\\n")[0].decode() for work in works()[:2]]
        ['SENSE AND SENSIBILITY', 'PRIDE AND PREJUDICE']
    """
    packed = files("thinwire.data.corpus").joinpath("english.txt.gz").read_bytes()
    return tuple(verified(packed).split(b"\f"))


def verified(packed: bytes) -> bytes:
    """Return the text in `packed`, if its checksum is right.

    Raises:
        ValueError: `packed` cannot be unpacked, or its text has another checksum.

    Example:
        >>> verified(b"not a gzip file")
        Traceback (most recent call last):
        ...
        ValueError: the bundled English text cannot be unpacked (Not a gzipped file...): ...
    """
    try:
        text = gzip.decompress(packed)
    except (EOFError, OSError, zlib.error) as reason:
        raise ValueError(
            f"the bundled English text cannot be unpacked ({reason}): the installed file is "
            "damaged; reinstall thinwire"
        ) from reason
    digest = hashlib.sha256(text).hexdigest()
    if digest != SHA256:
        raise ValueError(
            f"the bundled English text has sha256 {digest}, not {SHA256}: the installed file is "
            "damaged or was rebuilt "
            "from other sources; reinstall thinwire, or set SHA256 to what "
            "scripts/build_english.py printed"
        )
    return text
