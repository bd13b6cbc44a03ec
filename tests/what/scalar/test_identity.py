import pytest
import torch

from thinwire.core import Spec, State
from thinwire.testing import contexts, specs
from thinwire.what import identity


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_it_sends_the_buckets_own_dtype(dtype: torch.dtype) -> None:
    spec = Spec((), 0, 5, dtype)
    payload = identity().encode(torch.arange(5.0), spec, State(), contexts()[1])
    assert payload.view(dtype).tolist() == [0, 1, 2, 3, 4]


def test_it_copies_nothing_where_the_dtype_is_right() -> None:
    x = torch.randn(specs()["many parts"].numel)
    assert (
        identity().encode(x, specs()["many parts"], State(), contexts()[1]).data_ptr()
        == x.data_ptr()
    )
