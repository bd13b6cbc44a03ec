"""What came of a run."""

from __future__ import annotations

from pathlib import Path

from tests.train.runs import kept, small
from thinwire.train.result import Result


def test_the_time_left_is_taken_from_the_batches_since_the_resume(tmp_path: Path) -> None:
    config = small(strategy="diloco,period=2", accumulate=2, steps=16, save_every=4)
    kept(0, config, tmp_path, stop_at=8)
    done, _ = kept(0, small(**(vars(config) | {"resume": True})), tmp_path)
    assert isinstance(done, Result)
    assert done.end.begun == done.resumed[-1]
