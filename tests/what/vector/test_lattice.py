import itertools
import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from thinwire.core import Coder, Spec, State
from thinwire.errors import StrategyError
from thinwire.testing import contexts
from thinwire.what import lattice, uniform

SEAT = contexts()[1]


def through(codec: Coder, x: Tensor) -> Tensor:
    spec = Spec((), 0, x.numel(), x.dtype)
    payload = codec.encode(x, spec, State(), SEAT)
    assert payload.numel() == codec.nbytes(spec)
    return codec.decode(payload, spec, State(), SEAT, 1)


def flat(n: int) -> Tensor:
    """Evenly spread values; the first is the block's largest, so that every step is known."""
    x = 2 * torch.rand(n, generator=torch.Generator().manual_seed(0), dtype=torch.float64) - 1
    x[0] = 1
    return x


def roots(points: str) -> Tensor:
    """The shortest vectors: they cut out the cell of a root lattice (24 of D4, 240 of E8)."""
    n = {"D4": 4, "E8": 8}[points]
    found = []
    for i, j in itertools.combinations(range(n), 2):
        for a, b in itertools.product((-1.0, 1.0), repeat=2):
            found.append([a if k == i else b if k == j else 0.0 for k in range(n)])
    if points == "E8":
        found += [
            list(signs)
            for signs in itertools.product((-0.5, 0.5), repeat=8)
            if signs.count(-0.5) % 2 == 0
        ]
    return torch.tensor(found, dtype=torch.float64)


@given(
    n=st.integers(0, 300),
    bits=st.integers(2, 8),
    block=st.integers(0, 5),
    points=st.sampled_from(["E8", "D4"]),
)
def test_bytes_are_codes_and_one_step_a_block(n: int, bits: int, block: int, points: Any) -> None:
    codec = lattice(bits, points, 8 * block)
    blocks = math.ceil(n / (8 * block or max(n, 1)))
    if points == "E8":
        codes = math.ceil(n / 8) * bits
    else:
        codes = math.ceil(math.ceil(n / 4) * 3 * bits / 8) + math.ceil(
            math.ceil(n / 4) * (bits - 1) / 8
        )
    assert codec.nbytes(Spec((), 0, n, torch.float32)) == codes + 4 * blocks
    assert codec.nbytes(Spec((), 0, n, torch.float64)) == codes + 8 * blocks


@given(
    seed=st.integers(0, 2**32),
    bits=st.integers(2, 8),
    points=st.sampled_from(["E8", "D4"]),
    edge=st.booleans(),
)
def test_it_is_the_nearest_point_of_the_lattice(
    seed: int, bits: int, points: Any, edge: bool
) -> None:
    codec = lattice(bits, points, 0)
    x = 2 * torch.rand(80, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) - 1
    x = x.sign() * x.abs() ** (0.1 if edge else 1.0)
    x[0] = 1
    step = 1 / codec._top
    n = codec._size
    at, sent = (x / step).view(-1, n), (through(codec, x) / step).view(-1, n)
    halves = sent - sent.floor()
    assert torch.all((halves < 1e-6) | (halves > 1 - 1e-6) | ((halves - 0.5).abs() < 1e-6))
    assert (
        torch.allclose(sent.sum(1).remainder(2), torch.zeros(80 // n, dtype=torch.float64))
        or points == "E8"
    )
    others = sent[:, None] + roots(points)
    whole = (others - others.round()).abs().amax(2) < 1e-6
    low = torch.where(whole, -(2.0 ** (bits - 1) - 1), -(2.0 ** (bits - 1) - 0.5))
    allowed = (others.amin(2) >= low - 1e-6) & (others.amax(2) <= -low + 1e-6)
    farther = (others - at[:, None]).square().sum(2) >= (sent - at).square().sum(
        1, keepdim=True
    ) - 1e-9
    assert bool((farther | ~allowed).all())
    assert float((sent - at).abs().max()) <= math.sqrt(2)


@pytest.mark.parametrize(
    ("points", "gain", "fewer_bits"), [("E8", 0.654, 0.0), ("D4", 0.366, 0.25)]
)
def test_its_gain_over_scalars_at_equal_bits_is_the_published_one(
    points: Any, gain: float, fewer_bits: float
) -> None:
    x = flat(400_000)
    scalar = (
        through(uniform(8, 0, grid="rise"), x) - x
    ).square().mean() * 4**fewer_bits  # 6.02 dB a bit
    vector = (through(lattice(8, points, 0), x) - x).square().mean()
    assert abs(10 * math.log10(scalar / vector) - gain) < 0.05
    # the second moments of the cells themselves (Conway & Sloane): a value's mean square error over
    # the volume of a cell
    volume = {"E8": 1.0, "D4": 2.0**0.5}[points]
    cell = {"E8": 0.07168, "D4": 0.07660}[points]
    assert abs(vector * lattice(8, points, 0)._top ** 2 / volume / cell - 1) < 0.01


def test_at_four_bits_e8_beats_scalars_on_bell_shaped_values_too() -> None:
    x = torch.randn(200_000, generator=torch.Generator().manual_seed(0))
    errors = [
        float((through(codec, x) - x).square().mean())
        for codec in (uniform(4, grid="rise"), uniform(4), lattice(4))
    ]
    assert 0.4 < 10 * math.log10(errors[0] / errors[2]) < 0.8
    assert errors[1] > errors[2] > 0


def test_a_clip_that_suits_the_values_helps_where_bits_are_few() -> None:
    x = torch.randn(100_000, generator=torch.Generator().manual_seed(0))

    def error(codec: Coder) -> float:
        return float((through(codec, x) - x).norm() / x.norm())

    assert 0.3 < error(lattice(2, scale="mse")) < 0.65 * error(lattice(2))
    assert (
        0.18 < error(lattice(3, scale="mse")) < 0.98 * error(uniform(3, grid="rise", scale="mse"))
    )


def test_points_and_zeros_are_said_exactly() -> None:
    x = torch.tensor([7.5, -7.5, 0.5, 0.5, 0.5, 0.5, 0.5, 1.5])
    assert torch.equal(
        through(lattice(4), torch.cat([x, torch.zeros(8)])), torch.cat([x, torch.zeros(8)])
    )
    x = torch.tensor([7.0, -7.0, 1.0, 3.0])
    assert torch.equal(through(lattice(4, "D4"), x), x)
    assert torch.equal(through(lattice(2), torch.zeros(20)), torch.zeros(20))


def test_a_bad_value_spoils_its_block_and_no_other() -> None:
    for bad in (float("nan"), float("inf"), -float("inf")):
        x = torch.ones(24)
        x[10] = bad
        assert through(lattice(4, block=8), x).isnan().tolist() == [8 <= i < 16 for i in range(24)]


def test_cuts_keep_blocks_and_bytes_whole() -> None:
    assert [
        lattice(3, points, block).traits.grain
        for points, block in (("E8", 0), ("E8", 24), ("D4", 0), ("D4", 8), ("D4", 12))
    ] == [
        8,
        24,
        8,
        8,
        12,
    ]


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"bits": 1}, "choose 2 to 8"),
        ({"bits": 9}, "choose 2 to 8"),
        ({"points": "Leech"}, "choose 'E8' or 'D4'"),
        ({"scale": "sigma"}, "choose 'absmax' or 'mse'"),
        ({"block": 12}, "a block of E8 is a multiple of 8"),
        ({"block": -8}, "a block of E8 is a multiple of 8"),
        ({"block": 6, "points": "D4"}, "a block of D4 is a multiple of 4"),
    ],
)
def test_a_wrong_argument_is_refused(settings: dict[str, Any], told: str) -> None:
    with pytest.raises(StrategyError) as caught:
        lattice(**settings)
    assert told in str(caught.value)


def test_all_wrong_arguments_are_told_at_once() -> None:
    with pytest.raises(StrategyError) as caught:
        lattice(bits=1, block=3)
    assert len(caught.value.reasons) == 2
