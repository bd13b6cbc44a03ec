"""What a run is made of: what cannot be is told before ranks meet."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.train.runs import small
from thinwire.errors import ConfigError
from thinwire.train.setup import prepare_run


@pytest.mark.parametrize("strategy", ["dense", "fedpaq,period=8"])
def test_a_text_of_five_bytes_has_a_sentence_of_its_own(strategy: str, tmp_path: Path) -> None:
    (tmp_path / "five.txt").write_text("hello")
    config = small(
        data=str(tmp_path / "five.txt"),
        cache=str(tmp_path / "cache"),
        strategy=strategy,
        context=128,
    )
    says = (
        r"five.txt: the text is too short: 5 tokens to train on and 2 held out, and a row of "
        r"--context 128 takes 129 of each; "
    )
    with pytest.raises(
        ConfigError,
        match=says + r"give a text of at least 2,580 tokens or so, or a lower --context",
    ):
        prepare_run(config)
