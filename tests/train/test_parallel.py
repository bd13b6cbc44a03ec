"""How ranks share out the model: numbers, and every refusal before anything is loaded."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.train.runs import kept, small
from thinwire.cli.main import main
from thinwire.errors import ConfigError
from thinwire.train.config import TrainConfig
from thinwire.train.parallel import advice, chosen_settings, shards_of


@pytest.mark.parametrize(
    ("shards", "world", "local", "held"),
    [(2, 4, 4, 2), (4, 4, 4, 4), (1, 4, 4, 1), (0, 4, 4, 4), (0, 8, 4, 4), (2, 8, 4, 2)],
)
def test_replicas_are_ranks_in_a_row(shards: int, world: int, local: int, held: int) -> None:
    assert shards_of(TrainConfig(parallel="fsdp", shards=shards), world, local) == held


def test_each_rank_holds_its_own_by_default() -> None:
    assert shards_of(TrainConfig(), 4, 4) == 0
    assert chosen_settings(TrainConfig()).keys() == vars(TrainConfig()).keys() - {
        "parallel",
        "shards",
    }
    said = chosen_settings(TrainConfig(parallel="fsdp", shards=2))
    assert (said["parallel"], said["shards"]) == ("fsdp", 2)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--shards=2", "--workers=4"], "--shards 2: with --parallel ddp each rank holds"),
        (["--parallel=fsdp"], "a single rank has nobody to share the model with"),
        (
            ["--parallel=fsdp", "--workers=4", "--shards=3"],
            "4 ranks are not whole replicas of 3 ranks each; take one of 1, 2, 4",
        ),
        (["--parallel=fsdb"], "expected ddp or fsdp, got 'fsdb'; did you mean 'fsdp'?"),
    ],
)
def test_what_cannot_be_is_one_line(
    flags: list[str], said: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    try:
        code = main(["train", f"--out={tmp_path / 'out'}", *flags])
    except SystemExit as end:
        code = int(end.code or 0)
    out, err = capfd.readouterr()
    assert (code, out) == (2, "")
    assert said in err
    assert err.count("\n") == 1


def test_one_replica_says_that_nothing_is_sent() -> None:
    assert "the strategy has nobody to send to; --shards N" in advice(4, 4)
    assert advice(0, 1) == advice(2, 4) == ""


def test_a_run_that_is_not_sharded_writes_what_it_always_did(tmp_path: Path) -> None:
    done, _ = kept(0, small(steps=2), tmp_path)
    assert not isinstance(done, str)
    assert "parallel" not in (tmp_path / "config.toml").read_text()
    assert "parallel" not in json.loads(done.to_json())["config"]
    assert "shards" not in done.figures()
    with pytest.raises(ConfigError, match="nobody to share the model with"):
        kept(0, small(parallel="fsdp"), tmp_path / "sharded")
