import pytest
import torch

from thinwire.core import Spec, State
from thinwire.errors import StrategyError
from thinwire.testing import contexts
from thinwire.what import cast

SEAT = contexts()[1]


@pytest.mark.parametrize(("name", "unit"), [("bf16", 2**-8), ("fp16", 2**-11)])
def test_the_relative_error_that_the_docstring_states_is_reached_and_not_passed(
    name: str, unit: float
) -> None:
    x = torch.linspace(1, 2, 10_001)
    spec = Spec((), 0, x.numel(), torch.float32)
    codec = cast(name)  # type: ignore[arg-type]
    error = (
        codec.decode(codec.encode(x, spec, State(), SEAT), spec, State(), SEAT, 1) - x
    ).abs() / x
    assert 0.9 * unit < error.max() <= unit


def test_fp16_makes_large_values_infinite() -> None:
    spec = Spec((), 0, 2, torch.float32)
    payload = cast("fp16").encode(torch.tensor([65504.0, 70000.0]), spec, State(), SEAT)
    assert cast("fp16").decode(payload, spec, State(), SEAT, 1).tolist() == [65504.0, float("inf")]


def test_another_dtype_is_refused() -> None:
    with pytest.raises(
        StrategyError, match=r"cast\('fp32'\): not a 16-bit type; choose 'bf16' or 'fp16'"
    ):
        cast("fp32")  # type: ignore[arg-type]
