from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from thinwire.core import Part, Spec, State
from thinwire.errors import PayloadError, StrategyError
from thinwire.kernels import fast
from thinwire.testing import contexts
from thinwire.what import cast, sampled, topk
from thinwire.what.sparse import _indices

SEAT = contexts()[1]


def span(n: int) -> Spec:
    return Spec((), 0, n, torch.float32)


def through(codec: sampled, x: Tensor, step: int = 0) -> Tensor:
    ctx, spec = contexts(step)[1], span(x.numel())
    return codec.decode(codec.encode(x, spec, State(), ctx), spec, State(), ctx, 1)


def values(kind: str, seed: int, n: int) -> Tensor:
    normal = torch.randn(n, generator=torch.Generator().manual_seed(seed))
    ramp = torch.arange(n, dtype=torch.float32)
    return {
        "normal": normal,
        "heavy": normal**3,
        "sorted": normal.sort().values,
        "periodic": normal * (ramp % 64 == 0),
        "equal": normal * 0 + 1,
    }[kind]


@given(
    *(
        st.sampled_from(["normal", "heavy", "sorted", "periodic", "equal"]),
        st.integers(0, 2**32),
        st.integers(1, 20_000),
    ),
    *(st.sampled_from([0.01, 0.1, 0.5, 1.0]), st.integers(0, 70)),
)
def test_the_density_stays_in_its_band_whatever_the_values(
    kind: str, seed: int, n: int, density: float, step: int
) -> None:
    x, codec = values(kind, seed, n), sampled(density)
    sent = through(codec, x, step)
    count, wanted = int((sent != 0).sum()), codec._wanted(span(n))
    assert min(wanted / 1.5, int((x != 0).sum())) <= count <= max(wanted, 1.5 * density * n + 1)
    left = x[sent == 0].abs()
    assert (
        not left.numel() or not count or left.max() <= sent[sent != 0].abs().min()
    )  # none that is left out is larger than one that is sent
    payload = codec.encode(x, span(n), State(), SEAT)
    assert payload.numel() <= codec.max_nbytes(span(n))


@pytest.mark.parametrize("kind", ["normal", "heavy"])
def test_on_large_spans_the_sample_is_enough(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    searched: list[int] = []
    spied(monkeypatch, searched.append)
    for step in range(20):
        count = int((through(sampled(0.01), values(kind, step, 2**20), step) != 0).sum())
        assert count == pytest.approx(0.01 * 2**20, rel=0.35)
    assert set(searched) <= {2**20 // 40, 2**20 // 40 + 1}  # never the whole span


def spied(monkeypatch: pytest.MonkeyPatch, tell: Callable[[int], None]) -> None:
    """Tell of how many values each search for the largest is."""
    of_sample, of_span = torch.Tensor.topk, fast.largest
    monkeypatch.setattr(
        torch.Tensor, "topk", lambda x, *a, **k: (tell(x.numel()), of_sample(x, *a, **k))[1]
    )
    monkeypatch.setattr(fast, "largest", lambda x, k: (tell(x.numel()), of_span(x, k))[1])


def parts(n: int) -> Spec:
    return Spec((Part("w", (n,), 0, "vector"),), 0, n, torch.float32)


def flights(
    codec: sampled, xs: list[Tensor], monkeypatch: pytest.MonkeyPatch
) -> tuple[list[Tensor], list[list[int]], list[float]]:
    """What was sent in each flight of one rank, the sizes of what was searched for it, and the
    threshold afterwards."""
    spec, searched = parts(xs[0].numel()), []
    state, sent, bars = codec.init(spec, SEAT), [], []

    def tell(n: int) -> None:
        searched[-1].append(n)

    spied(monkeypatch, tell)
    for step, x in enumerate(xs):
        searched.append([])
        ctx = contexts(step)[1]
        sent.append(
            codec.decode(codec.encode(x, spec, state, ctx), spec, State(), ctx, 1)
        )  # a payload says all that it takes
        bars.append(float(state["bar"].value))
    return sent, searched, bars


def test_a_threshold_is_kept_while_its_count_stays_in_the_band(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    n, d = 2**16, 656
    xs = [
        values("normal", seed, n) * scale
        for seed, scale in enumerate([1.0, 1.0, 1.05, 1.05, 1.5, 1.5, 0.9])
    ]
    sent, searched, bars = flights(sampled(0.01), xs, monkeypatch)
    assert [bool(each) for each in searched] == [True, False, False, False, True, False, True]
    assert bars[0] == bars[1] == bars[2] == bars[3] != bars[4] == bars[5] != bars[6]
    for x, each, bar in zip(xs, sent, bars, strict=True):
        assert torch.equal(each, torch.where(x.abs() < bar, 0, x))
        assert d / 1.5 <= int((each != 0).sum()) <= d * 1.5
    assert int((sent[3] != 0).sum()) > 1.2 * d  # it did wander


def test_a_threshold_that_fits_no_more_is_sampled_anew_and_if_that_fails_exact(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    n = 2**16
    xs = [
        values("periodic", seed, n) for seed in range(4)
    ]  # nothing but zeros between the multiples of 64
    sent, searched, bars = flights(sampled(0.01), xs, monkeypatch)
    assert searched[1] == []  # the exact threshold of the first serves the next
    assert n in searched[0]
    assert bars[0] == bars[1] > 0
    assert int((sent[0] != 0).sum()) == 656


def test_what_is_no_number_leaves_the_threshold_as_it_was() -> None:
    codec, spec = sampled(0.01), parts(5000)
    state = codec.init(spec, SEAT)
    x = values("normal", 0, 5000)
    codec.encode(x, spec, state, SEAT)
    before = state["bar"].value
    assert before > 0
    codec.encode(torch.full((5000,), float("nan")), spec, state, SEAT)
    codec.encode(torch.full((5000,), float("inf")), spec, state, SEAT)
    assert state["bar"].value is before
    codec.encode(x * 0, spec, state, SEAT)  # silence has no threshold
    sent = codec.decode(codec.encode(x, spec, state, SEAT), spec, State(), SEAT, 1)
    assert 33 <= int((sent != 0).sum()) <= 75


def test_its_threshold_is_a_ranks_own_and_none_where_places_move() -> None:
    leaf = sampled(0.01).init(parts(100), SEAT)["bar"]
    assert (leaf.kind, leaf.spec, leaf.part, leaf.value.shape) == (
        "private",
        None,
        "w@0",
        torch.Size([]),
    )
    assert sampled(0.01).init(span(100), SEAT).leaves == {}
    assert not list((topk(0.5) >> sampled(0.1)).init(parts(100), SEAT).walk())


def test_where_the_sample_misleads_the_search_is_exact() -> None:
    x = values("periodic", 0, 2**16)  # nothing but zeros between the multiples of 64
    for step in (0, 1):
        assert int((through(sampled(0.1), x, step) != 0).sum()) == int((x != 0).sum())
    assert int((through(sampled(0.01), x, 1) != 0).sum()) == 656


def test_bytes() -> None:
    codec, x = sampled(0.01), values("normal", 0, 2**16)
    count = int((through(codec, x) != 0).sum())
    indices = _indices.smallest_nbytes(count, 2**16)
    assert codec.encode(x, span(2**16), State(), SEAT).numel() == 8 + indices + 4 * count
    both = codec >> cast()
    assert (
        both.encode(x, span(2**16), both.init(span(2**16), SEAT), SEAT).numel()
        == 8 + indices + 2 * count
    )


def test_what_is_no_number_is_heard_and_zeros_are_silent() -> None:
    x = values("normal", 0, 5000)
    x[7], x[2**12] = float("nan"), -float("inf")
    sent = through(sampled(0.1), x)
    assert sent.isfinite().logical_not().nonzero().view(-1).tolist() == [7, 2**12]
    assert sampled(0.1).encode(torch.zeros(5000), span(5000), State(), SEAT).numel() == 0


def test_more_entries_than_the_band_allows_are_refused() -> None:
    payload = sampled(1.0).encode(values("normal", 0, 1000), span(1000), State(), SEAT)
    with pytest.raises(PayloadError, match=r"claims \d+ values of 1000"):
        sampled(0.1).decode(payload, span(1000), State(), SEAT, 1)


def test_all_wrong_arguments_are_told_at_once() -> None:
    with pytest.raises(StrategyError) as caught:
        sampled(0.0, stride=0, band=1.0)
    assert len(caught.value.reasons) == 3
