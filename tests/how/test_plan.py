"""What every planned route derives from its plan."""

import torch

from thinwire.core import Part, Spec
from thinwire.how import direct, ring
from thinwire.how._plan import largest
from thinwire.what import cast, threshold, topk, uniform

SPEC = Spec((Part("w", (1000,), 0, "vector"),), 0, 1000, torch.float32)


def test_spans_cover_a_bucket_at_the_codecs_grain() -> None:
    for route in (ring(), direct()):
        spans = route.spans(uniform(4, block=64), SPEC, 3)
        assert [span.begin for span in spans[1:]] == [span.end for span in spans[:-1]]
        assert (spans[0].begin, spans[-1].end) == (0, 1000)
        assert all(span.begin % 64 == 0 for span in spans)


def test_where_the_data_decides_a_packet_counts_at_its_largest() -> None:
    assert largest(cast(), SPEC) == cast().nbytes(SPEC) == 2000
    assert largest(threshold(1.0), SPEC) == threshold(1.0).max_nbytes(SPEC)


def test_what_would_lose_entries_twice_is_refused() -> None:
    assert "Use gather()" in (ring().refuses(topk(0.1)) or "")
    assert ring().refuses(uniform(4)) is None
