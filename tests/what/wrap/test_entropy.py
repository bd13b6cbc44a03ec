import subprocess
import sys
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
import torch
import zstandard
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from thinwire.core import Codec, Coder, Spec, State
from thinwire.core.component import from_table, to_table
from thinwire.errors import PayloadError, StrategyError
from thinwire.kernels import reference
from thinwire.testing import contexts
from thinwire.what import (
    cast,
    codebook,
    entropy,
    feedback,
    identity,
    lowrank,
    natural,
    threshold,
    topk,
    uniform,
)
from thinwire.what.wrap.entropy import _joined, _parted

SEAT, N = contexts()[1], 1 << 17  # zstd makes a table for each 2^17 bytes
SPEC = Spec((), 0, N, torch.float32)
NORMAL = torch.randn(N, generator=torch.Generator().manual_seed(0))
DTYPES = [torch.bfloat16, torch.float16, torch.float32, torch.float64]


def bits_of(plane: Tensor) -> float:
    """The entropy of a plane's bytes, in bits."""
    shares = torch.bincount(plane.int(), minlength=256).double() / plane.numel()
    return float(-(shares * shares.clamp(min=1e-300).log2()).sum())


def said(codec: Coder, x: Tensor, spec: Spec = SPEC) -> Tensor:
    return codec.encode(x, spec, codec.init(spec, SEAT), SEAT)


def heard(codec: Coder, payload: Tensor, spec: Spec = SPEC) -> Tensor:
    return codec.decode(payload, spec, codec.init(spec, SEAT), SEAT, 1)


def test_the_exponent_has_a_plane_of_its_own() -> None:
    x = torch.tensor([1.0, -1.5, 2.0, float("-inf"), -0.0], dtype=torch.bfloat16)
    assert _parted(reference.as_bytes(x), 2).tolist() == [
        [0, 0x81, 0, 1, 1],
        [127, 127, 128, 255, 0],
    ]
    assert _parted(reference.as_bytes(x.float()), 4)[3].tolist() == [127, 127, 128, 255, 0]


@given(words=st.binary(min_size=8, max_size=800), dtype=st.sampled_from(DTYPES))
def test_planes_join_to_the_same_bits(words: bytes, dtype: torch.dtype) -> None:
    raw = torch.from_numpy(np.frombuffer(words[: len(words) // 8 * 8], dtype=np.uint8).copy())
    assert torch.equal(_joined(_parted(raw, dtype.itemsize)), raw)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_nothing_is_lost_of_any_dtype(dtype: torch.dtype) -> None:
    x, spec = NORMAL.to(dtype), replace(SPEC, dtype=dtype)
    payload = said(entropy(identity()), x, spec)
    assert not entropy(identity()).traits.lossy
    assert payload.numel() < 0.92 * x.nbytes
    assert torch.equal(heard(entropy(identity()), payload, spec), x.to(spec.work))


@pytest.mark.parametrize(
    "inner",
    [cast("bf16"), cast("fp16"), uniform(4), natural("nearest"), topk(0.01), threshold(1.0)],
    ids=repr,
)
@given(
    seed=st.integers(0, 2**32),
    n=st.integers(0, 700),
    scale=st.sampled_from([0.0, 1e-30, 1.0, 1e30]),
)
def test_what_is_heard_is_what_the_inner_codec_would_have_said(
    inner: Coder, seed: int, n: int, scale: float
) -> None:
    spec = replace(SPEC, numel=n)
    x = scale * torch.randn(n, generator=torch.Generator().manual_seed(seed))
    payload = said(entropy(inner), x, spec)
    total = torch.ones(n)
    entropy(inner).accumulate(total, payload.clone(), spec, State(), SEAT, 1)
    exact = heard(inner, said(inner, x, spec), spec)
    assert payload.numel() <= entropy(inner).max_nbytes(spec)
    assert torch.equal(heard(entropy(inner), payload, spec), exact)
    assert torch.equal(total, 1 + exact)


def test_bytes_are_the_entropy_of_the_exponents_and_a_byte_each() -> None:
    mantissa, exponent = _parted(said(cast(), NORMAL), 2)
    least = N * bits_of(exponent) / 8 + N + 16
    assert 2.5 < bits_of(exponent) < 2.6
    assert bits_of(mantissa) > 7.95
    assert least < said(entropy(), NORMAL).numel() < 1.01 * least


@pytest.mark.parametrize(
    ("inner", "share"),
    [(uniform(4), 0.83), (uniform(8), 0.93), (natural("nearest"), 0.4)],
    ids=repr,
)
def test_codes_travel_in_about_their_entropy(inner: Coder, share: float) -> None:
    raw = said(inner, NORMAL)
    least = sum(block.numel() * bits_of(block) / 8 for block in raw.split(N))
    assert least < said(entropy(inner), NORMAL).numel() < least * 1.05
    assert said(entropy(inner), NORMAL).numel() == pytest.approx(share * raw.numel(), rel=0.02)


def test_what_a_chain_picked_has_planes() -> None:
    bare, coded = topk(0.01) >> cast(), topk(0.01) >> entropy()
    assert torch.equal(heard(coded, said(coded, NORMAL)), heard(bare, said(bare, NORMAL)))
    assert (
        said(coded, NORMAL).numel() < said(bare, NORMAL).numel() - 0.8 * N // 100
    )  # the exponents of the largest are nearly all alike


def test_noise_travels_as_it_is() -> None:
    noise = torch.randint(
        -(2**15), 2**15, (N,), dtype=torch.int16, generator=torch.Generator().manual_seed(0)
    ).view(torch.bfloat16)
    payload = said(entropy(identity()), noise, replace(SPEC, dtype=torch.bfloat16))
    assert (
        payload.numel()
        == entropy(identity()).max_nbytes(replace(SPEC, dtype=torch.bfloat16))
        == 2 * N + 16
    )


def test_zeros_travel_in_a_few_bytes() -> None:
    assert said(entropy(), torch.zeros(N)).numel() < 100
    assert said(entropy(threshold(1.0)), torch.zeros(N)).numel() == 0


def patched(payload: Tensor, at: int, value: int) -> Tensor:
    payload = payload.clone()
    payload[8 * at : 8 * at + 8] = torch.tensor([value]).view(torch.uint8)
    return payload


@pytest.mark.parametrize(
    ("at", "value"), [(0, N + 1), (0, 0), (1, -1), (1, 2**62), (0, N - 1), (1, 10)]
)
def test_lengths_that_cannot_be_are_refused(at: int, value: int) -> None:
    with pytest.raises(PayloadError, match=r"planes of \[|bytes where"):
        heard(entropy(), patched(said(entropy(), NORMAL), at, value))


@pytest.mark.parametrize("value", [0, -1, 2**62, threshold(1.0).max_nbytes(SPEC) + 1])
def test_a_payload_that_claims_more_than_the_span_can_hold_is_refused(value: int) -> None:
    codec = entropy(threshold(1.0))
    with pytest.raises(PayloadError, match="claims to open to"):
        heard(codec, patched(said(codec, NORMAL), 0, value))


@pytest.mark.parametrize("length", [0, 1, 15])
def test_a_payload_that_ends_within_its_lengths_is_refused(length: int) -> None:
    with pytest.raises(PayloadError, match="too few for the lengths of 2 planes"):
        heard(entropy(), said(entropy(), NORMAL)[:length])


def with_frame(frame: bytes) -> Tensor:
    """A payload of bf16 zeros whose exponents are said by this frame."""
    head = np.array([N, len(frame)], dtype=np.int64).view(np.uint8)
    return torch.from_numpy(
        np.concatenate([head, np.zeros(N, dtype=np.uint8), np.frombuffer(frame, dtype=np.uint8)])
    )


BOMB = zstandard.compress(bytes(1 << 26))
LIAR = BOMB[:5] + BOMB[5:].replace(
    (1 << 26).to_bytes(4, "little"), N.to_bytes(4, "little"), 1
)  # 64 MiB that claim to be 128 KiB
GOOD = zstandard.compress(bytes(N))


def test_a_frame_of_zeros_is_heard() -> None:
    assert not heard(entropy(), with_frame(GOOD)).any()


@pytest.mark.parametrize(
    "frame",
    [
        BOMB,
        LIAR,
        zstandard.compress(bytes(N - 1)),
        zstandard.ZstdCompressor(write_content_size=False).compress(bytes(N)),
        GOOD[:-1],
        GOOD + b"\0",
        GOOD + GOOD,
        b"no frame at all",
        b"\x50\x2a\x4d\x18\x01\x00\x00\x00\x00",  # one to skip
        zstandard.ZstdCompressor(
            dict_data=zstandard.ZstdCompressionDict(bytes(range(256)) * 8)
        ).compress(bytes(N)),
    ],
    ids=[
        "bomb",
        "liar",
        "short",
        "sizeless",
        "cut",
        "tail",
        "twice",
        "text",
        "skippable",
        "raw dictionary",
    ],
)
def test_a_hostile_frame_is_refused_and_takes_no_more_memory_than_the_span(
    frame: bytes, request: pytest.FixtureRequest
) -> None:
    assert frame != BOMB or zstandard.get_frame_parameters(frame).content_size == 1 << 26
    assert (
        request.node.callspec.id != "liar"
        or zstandard.get_frame_parameters(frame).content_size == N
    )
    payload = with_frame(frame)
    tracemalloc.start()
    try:
        if request.node.callspec.id == "raw dictionary":
            heard(entropy(), payload)  # zeros refer to nothing in it
        else:
            with pytest.raises(PayloadError):
                heard(entropy(), payload)
        assert tracemalloc.get_traced_memory()[1] < 6 * N
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("inner", "told"),
    [
        (
            feedback(uniform(4)),
            r"must send one packet and remember nothing. Put entropy\(…\) inside it",
        ),
        (lowrank(2), "must send one packet"),
        (codebook(), "learns from what the ranks answer"),
        (entropy(), "coded already"),
        (topk(10) >> entropy(), "coded already"),
    ],
    ids=repr,
)
def test_what_cannot_be_coded_is_refused(inner: Codec, told: str) -> None:
    with pytest.raises(StrategyError, match=told):
        entropy(inner)  # type: ignore[arg-type]


def test_without_zstandard_it_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "zstandard", None)
    with pytest.raises(StrategyError, match=r"pip install 'thinwire\[entropy\]'"):
        entropy()


def test_zstandard_is_loaded_only_when_it_is_asked_for() -> None:
    code = (
        "import sys, thinwire.what; assert 'zstandard' not in sys.modules; "
        "thinwire.what.entropy(); assert 'zstandard' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    "codec", [entropy(), entropy(uniform(4)), topk(10) >> entropy(identity())], ids=repr
)
def test_it_survives_its_table_and_its_repr(codec: Codec) -> None:
    problems: list[str] = []
    assert from_table("what", to_table(codec), "what", problems) == codec, problems
    names = {
        "entropy": entropy,
        "cast": cast,
        "uniform": uniform,
        "topk": topk,
        "identity": identity,
    }
    assert eval(repr(codec), names) == codec
