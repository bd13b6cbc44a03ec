import pytest
import torch

from tests.cases import CODECS
from thinwire.core import Codec, Spec, State
from thinwire.testing import check_codec, contexts, specs
from thinwire.what import identity


@pytest.mark.parametrize("codec", CODECS["identity"], ids=repr)
def test_laws(codec: Codec) -> None:
    check_codec(codec)


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
