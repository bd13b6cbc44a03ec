"""Every build of the native kernels equals the reference, bit for bit."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.kernels.values import same, values
from thinwire.core import RankContext, Spec
from thinwire.errors import PayloadError
from thinwire.kernels import fast, native, reference
from thinwire.what import topk as topk_codec
from thinwire.what.sparse import _indices

BUILT = native.available()[1:]
pytestmark = pytest.mark.skipif(
    not BUILT, reason="built without a compiler: there are no native kernels"
)

levels = pytest.mark.parametrize("level", BUILT or ("torch",))


@levels
@given(
    chunks=st.integers(1, 3),
    per=st.integers(1, 300),
    share=st.floats(0, 1),
    data=st.data(),
    coding=st.sampled_from(_indices.CODINGS),
)
def test_random_bytes_are_read_or_refused_alike(
    level: native.Level,
    chunks: int,
    per: int,
    share: float,
    data: st.DataObject,
    coding: _indices.Coding,
) -> None:
    k = int(share * per)
    nbytes = _indices.nbytes(coding, k, per, chunks)
    side = torch.frombuffer(
        bytearray(data.draw(st.binary(min_size=nbytes, max_size=nbytes)) + b"x"), dtype=torch.uint8
    )[:nbytes]
    told: dict[str, object] = {}
    for each in (level, "torch"):
        with native.using(each):
            try:
                told[each] = _indices.read(side, k, per, chunks, topk_codec(1), coding).tolist()
            except PayloadError as error:
                told[each] = type(error)
    assert told[level] == told["torch"]


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_threads_change_nothing(threads: int) -> None:
    x = values(3_000_000, 0, 0.0, 3)
    before = torch.get_num_threads()
    one = [
        fast.grid_encode(x, 256, 4, "tread", (1, 2)),
        fast.sign_encode(x, 256),
        *fast.largest(x.view(1000, -1), 30),
    ]
    try:
        torch.set_num_threads(threads)
        many = [
            fast.grid_encode(x, 256, 4, "tread", (1, 2)),
            fast.sign_encode(x, 256),
            *fast.largest(x.view(1000, -1), 30),
        ]
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(one, many, strict=True))


def test_the_draws_are_even_and_their_mean_is_a_half() -> None:
    drawn = reference.random_bits(1 << 20, (12345, 67890))
    counts = torch.bincount(drawn >> 8, minlength=256).double()
    assert abs(float(drawn.double().mean()) / 65536 - 0.5) < 4 / math.sqrt(12 * drawn.numel())
    assert (
        150 < float(((counts - 4096) ** 2 / 4096).sum()) < 370
    )  # chi² of 255 degrees: 5 standard deviations either side


@pytest.mark.parametrize(
    "other",
    [
        RankContext(1, (0, 1), 0, 0),
        RankContext(0, (0, 1), 1, 0),
        RankContext(0, (0, 1), 0, 1),
        RankContext(0, (0, 1), 0, 0, "back"),
    ],
    ids=repr,
)
def test_another_rank_step_seed_or_hop_draws_others(other: RankContext) -> None:
    spec = Spec((), 0, 1 << 16, torch.float32)
    a, b = (
        reference.random_bits(spec.numel, ctx.rng_key(spec))
        for ctx in (RankContext(0, (0, 1), 0, 0), other)
    )
    assert abs(float(torch.corrcoef(torch.stack([a, b]).double())[0, 1])) < 5 / 256
    counts = torch.bincount(
        (a >> 12) * 16 + (b >> 12), minlength=256
    ).double()  # both together fill the square evenly
    assert 150 < float(((counts - 256) ** 2 / 256).sum()) < 370


sides = st.one_of(st.integers(1, 40), st.sampled_from([64, 1023, 1025, 2100]))


@levels
@given(
    rows=sides,
    n=st.integers(1, 70),
    turned=st.booleans(),
    rank=st.integers(1, 19),
    seed=st.integers(0, 99),
    odd=st.sampled_from([0, 0, 1]),
)
def test_thin_product(
    level: native.Level, rows: int, n: int, turned: bool, rank: int, seed: int, odd: int
) -> None:
    """Both ways round: as exact as sums of so many float32 values are, the same bits in every
    build; not finite where torch's is not."""
    rows, n = (n, rows) if turned else (rows, n)
    m = values(rows * n, seed, 0.0, odd).view(rows, n)
    for thin, transposed in (
        (values(n * rank, seed + 1, 0.0, 0).view(n, rank), False),
        (values(rows * rank, seed + 2, 0.0, 0).view(rows, rank), True),
    ):
        wide = m.T if transposed else m
        with native.using(level):
            found = fast.thin_product(m, thin, transposed)
        with native.using(BUILT[0]):
            assert same(found, fast.thin_product(m, thin, transposed))
        exact = wide.double() @ thin.double()
        within = wide.shape[1] * 2.0**-23 * (wide.abs().double() @ thin.abs().double()) + 1e-44
        finite = exact.isfinite() & (exact.abs() < 1e38) & (within < 1e30)
        assert bool(((found - exact).abs() <= within)[finite].all())
        assert not bool(found.isfinite()[exact.isnan()].any())


@levels
def test_thin_kernels_in_threads(level: native.Level) -> None:
    m, p, q = (
        values(900 * 1100, 1, 0.0, 0).view(900, 1100),
        values(900 * 5, 2, 0.0, 0).view(900, 5),
        values(1100 * 5, 3, 0.0, 0).view(1100, 5),
    )
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            with native.using(level):
                out = torch.empty(900, 1100)
                fast.outer(p, q, out)
                results.append(
                    [fast.thin_product(m, q), fast.thin_product(m, p, transposed=True), out]
                )
    finally:
        torch.set_num_threads(before)
    assert all(same(*pair) for pair in zip(*results, strict=True))
