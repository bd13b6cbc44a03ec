"""Shrink another codec's payload by entropy coding, with no loss of its own.

Steps:
    1. The inner codec's payload.
    2. Where it is floating-point numbers (`cast`, `identity`): rotate each left by one bit, so that
       the exponent fills the top byte and the sign goes with the mantissa; then part them into byte
       planes, all lowest bytes first. Other payloads are one plane.
    3. Each plane through a Huffman coder (zstd's), or as it is where that would not be shorter.
A byte of probability p takes about log2(1/p) bits, so a plane of n bytes takes about n H / 8, H =
-Σ p log2 p in bits. Exponents of gradients have an H of about 3; their mantissas one of nearly 8,
and travel as they are.

Source: Huffman 1952; planes and rotation as in ZipNN (Hershcovitch et al. 2024, arXiv:2411.05239)
and DFloat11 (Zhang et al. 2025, arXiv:2504.11651), which shrink weights. Differs from both: zstd's
frames (RFC 8878) carry the codes, with a table for each 128 KiB; and any codec's payload may be
coded, as QSGD (Alistarh et al. 2017, arXiv:1610.02132) codes its levels, there with Elias's code.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from thinwire.core import Coder, RankContext, Spec, State, Traits, check_nbytes
from thinwire.core.component import inside
from thinwire.errors import PayloadError, StrategyError
from thinwire.kernels import reference
from thinwire.what.scalar.cast import cast

if TYPE_CHECKING:
    from zstandard import ZstdCompressor

_WORDS = {2: torch.int16, 4: torch.int32, 8: torch.int64}
_LENGTH = 8  # bytes of a plane's length, and of the whole payload's where the data decides it


@dataclass(frozen=True)
class entropy(Coder):
    """The inner codec's payload by byte planes, each Huffman-coded or as it is: at most 16 bytes a
    plane longer, never less exact.

    Args:
        inner: whose payload. `cast("bf16")` rounds to bf16 and loses nothing more; `identity()`
            loses nothing at all (4 planes for float32, 8 for float64); `uniform(4)` sends its codes
            in about their entropy.

    Raises:
        StrategyError: `inner` remembers, talks in several rounds or is entropy-coded already; or
            the package zstandard is not installed.

    Sizes depend on the data, so payloads cannot be added unopened, and lengths travel before them.

    Example:
        >>> x = torch.randn(10_000, generator=torch.Generator().manual_seed(0))
        >>> spec, ctx = Spec((), 0, x.numel(), torch.float32), RankContext(0, (0,), step=0, seed=0)
        >>> payload = entropy().encode(x, spec, State(), ctx)
        >>> entropy().max_nbytes(spec), payload.numel() < 0.68 * 20_000
        (20016, True)
    """

    examples: ClassVar[tuple[str, ...]] = (
        "entropy(identity())",
        'entropy(cast("fp16"))',
        'entropy(uniform(4, rounding="stochastic"))',
        "entropy(threshold(1.0))",
        "topk(5, per=64) >> entropy(identity())",
        "entropy()",
    )

    inner: Coder = cast("bf16")

    def __new__(cls, *args: Any, **settings: Any) -> Self:  # noqa: ARG004  (its own checks say more than a type's name)
        return object.__new__(cls)

    def __post_init__(self) -> None:
        reasons = []
        if not isinstance(self.inner, Coder):
            reasons.append(
                f"entropy({self.inner!r}): the inner codec must send one packet and remember "
                "nothing. Put entropy(…) inside it, as in "
                "feedback(entropy(uniform(4))) or by_role(matrix=entropy(…))"
            )
        elif self.inner.single_packet_coder is not self.inner:
            reasons.append(
                f"entropy({self.inner!r}): it learns from what the ranks answer, which coded "
                "bytes would hide; let it not learn"
            )
        elif any(isinstance(component, entropy) for component in inside(self.inner)):
            reasons.append(
                f"entropy({self.inner!r}): its bytes are coded already, and a second time saves "
                "nothing; use it bare"
            )
        try:
            import zstandard  # noqa: F401
        except ImportError as error:
            reasons.append(
                f"entropy(…) needs the package zstandard ({error}): pip install 'thinwire[entropy]'"
            )
        if reasons:
            raise StrategyError(reasons)

    @cached_property
    def traits(self) -> Traits:
        return replace(
            self.inner.traits, summable=False, partial=False, row_wise=False, divides=False
        )

    def init(self, spec: Spec, ctx: RankContext) -> State:
        return self.inner.init(spec, ctx)

    def nbytes(self, spec: Spec) -> int | None:
        return 0 if self.inner.nbytes(spec) == 0 else None

    def max_nbytes(self, spec: Spec) -> int:
        most = self.inner.max_nbytes(spec)
        return most + self._head(spec) if most else 0

    def encode(self, x: Tensor, spec: Spec, state: State, ctx: RankContext) -> Tensor:
        raw = self.inner.encode(x, spec, state, ctx)
        if not raw.numel():
            return raw
        # 3. Each plane by itself; its length in the head tells coded from plain.
        coder = _coder()
        coded = [_shorter(coder, plane) for plane in _parted(raw, self._planes(spec)).cpu().numpy()]
        lengths = [] if self.inner.nbytes(spec) is not None else [raw.numel()]
        head = np.array([*lengths, *map(len, coded)], dtype=np.int64).view(np.uint8)
        return torch.from_numpy(np.concatenate([head, *coded])).to(raw.device)

    def decode(
        self, payload: Tensor, spec: Spec, state: State, ctx: RankContext, sender: int
    ) -> Tensor:
        return self.inner.decode(self._raw(payload, spec), spec, state, ctx, sender)

    def accumulate(
        self,
        total: Tensor,
        payload: Tensor,
        spec: Spec,
        state: State,
        ctx: RankContext,
        sender: int,
    ) -> None:
        self.inner.accumulate(total, self._raw(payload, spec), spec, state, ctx, sender)

    def _raw(self, payload: Tensor, spec: Spec) -> Tensor:
        """Return the inner codec's payload."""
        # A codec of exact size 0 sends nothing, framed or not.
        exact = self.inner.nbytes(spec)
        if exact == 0:
            check_nbytes(self, payload, 0)
        if not payload.numel() and not exact:
            return payload
        head, planes = self._head(spec), self._planes(spec)
        if payload.numel() < head:
            raise PayloadError(
                f"{self!r}: {payload.numel()} bytes are too few for the lengths of {planes} "
                "planes; the payload was cut"
            )

        # 1. The lengths of the planes. A payload may hold anything: nothing is allocated for what
        #    it claims before that is within what the inner codec could send.
        coded = payload.cpu().numpy()
        lengths = coded[:head].copy().view(np.int64).tolist()
        nbytes = exact or lengths.pop(0)
        if not 0 < nbytes <= self.inner.max_nbytes(spec) or nbytes % planes:
            raise PayloadError(
                f"{self!r}: a payload that claims to open to {nbytes} bytes; it is corrupted or "
                "of another span"
            )
        size = nbytes // planes
        if any(not 0 < length <= size for length in lengths):
            raise PayloadError(
                f"{self!r}: planes of {lengths} bytes that open to {size} each; the payload is "
                "corrupted or of another span"
            )
        check_nbytes(self, payload, head + sum(lengths))

        # 2. The planes; one that did not get shorter lies there as it is.
        rows, at = np.empty((planes, size), dtype=np.uint8), head
        for row, length in zip(rows, lengths, strict=True):
            row[:] = (
                coded[at : at + length]
                if length == size
                else self._opened(coded[at : at + length], size)
            )
            at += length
        return _joined(torch.from_numpy(rows).to(payload.device))

    def _opened(self, coded: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
        """Return the `size` bytes of a coded plane; nothing is allocated before the frame states
        that it holds as many."""
        import zstandard

        # The frame's header is read first: a claim of gigabytes must not be allocated.
        try:
            claimed = zstandard.get_frame_parameters(coded.data).content_size
            if claimed != size:
                raise PayloadError(
                    f"{self!r}: a plane that claims {claimed} bytes where {size} were due; the "
                    "payload is corrupted"
                )
            plain = zstandard.ZstdDecompressor().decompress(coded.data, allow_extra_data=False)
        except zstandard.ZstdError as error:
            raise PayloadError(
                f"{self!r}: a plane that does not decode ({error}); the payload is corrupted"
            ) from error
        if len(plain) != size:
            raise PayloadError(
                f"{self!r}: a plane of {len(plain)} bytes where {size} were due; the payload is "
                "corrupted"
            )
        return np.frombuffer(plain, dtype=np.uint8)

    def _planes(self, spec: Spec) -> int:
        """Return as many planes as a number has bytes, where the inner payload is floating-point
        numbers and nothing else; else 1."""
        dtype = self.inner.sum_dtype(spec)
        return (
            dtype.itemsize
            if dtype is not None and dtype.is_floating_point and dtype.itemsize in _WORDS
            else 1
        )

    def _head(self, spec: Spec) -> int:
        """Return the bytes of the lengths."""
        return _LENGTH * (self._planes(spec) + (self.inner.nbytes(spec) is None))

    def error_bound(self, x: Tensor, spec: Spec, ctx: RankContext) -> Tensor:
        return self.inner.error_bound(x, spec, ctx)


def _coder() -> ZstdCompressor:
    """Return zstd as a Huffman coder: "fast" with the smallest table and the longest match finds
    only runs and outright copies.

    On exponents it takes a third of the time of level 1, and fewer bytes, as no short match breaks
    the run of literals.
    """
    from zstandard import STRATEGY_FAST, ZstdCompressionParameters, ZstdCompressor

    return ZstdCompressor(
        compression_params=ZstdCompressionParameters(
            strategy=STRATEGY_FAST, hash_log=6, min_match=7
        )
    )


def _shorter(coder: ZstdCompressor, plane: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the plane coded, or as it is where that would not be shorter (so its length tells
    which)."""
    coded = coder.compress(plane.data)
    return np.frombuffer(coded, dtype=np.uint8) if len(coded) < plane.size else plane


def _parted(raw: Tensor, planes: int) -> Tensor:
    """Part (planes · n,) bytes of n little-endian numbers into (planes, n): of each, rotated left
    by one bit, its lowest bytes, the next, …"""
    if planes == 1:
        return raw.view(1, -1)
    words = reference.from_bytes(raw, _WORDS[planes])
    rotated = reference.as_bytes((words << 1).sub_(words >> 8 * planes - 1)).view(
        -1, planes
    )  # a shifted-down sign is 0 or -1
    out = torch.empty(planes, words.numel(), dtype=torch.uint8, device=raw.device)
    for i, plane in enumerate(out):
        plane.copy_(rotated[:, i])
    return out


def _joined(planes: Tensor) -> Tensor:
    """Undo `_parted`."""
    count, n = planes.shape
    if count == 1:
        return planes[0]
    # Bytes back into numbers, then each number's exponent and sign back where they were.
    rotated = torch.empty(n, count, dtype=torch.uint8, device=planes.device)
    for i, plane in enumerate(planes):
        rotated[:, i].copy_(plane)
    words = rotated.view(-1).view(_WORDS[count])
    return reference.as_bytes(
        (words >> 1).bitwise_and_(torch.iinfo(words.dtype).max).bitwise_or_(words << 8 * count - 1)
    )
