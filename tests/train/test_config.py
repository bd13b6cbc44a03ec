"""Settings: one table, two ways to say it, and every wrong value refused in one line."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from hypothesis import given
from hypothesis import strategies as st

from thinwire.errors import ConfigError
from thinwire.train.config import FIELDS, TrainConfig, add_flags, config_from, flags_of


def parsed(flags: list[str]) -> dict[str, Any]:
    parser = argparse.ArgumentParser(exit_on_error=False)
    add_flags(parser)
    return vars(parser.parse_args(flags))


CONFIGS = st.builds(
    TrainConfig,
    model=st.sampled_from(["gpt2-nano", "a folder/with space", "llama-nano,num_hidden_layers=6"]),
    steps=st.integers(1, 10**9),
    lr=st.floats(1e-9, 10),
    seed=st.integers(0, 2**63 - 1),
    resume=st.booleans(),
    compile=st.booleans(),
    clip=st.floats(1e-3, 100),
    prompt=st.text(st.characters(exclude_categories=["Cs", "Cc"])),
    precision=st.sampled_from(["auto", "fp32", "bf16"]),
)


@given(CONFIGS)
def test_flags_say_it_again(config: TrainConfig) -> None:
    assert config_from(parsed(flags_of(config)), None) == config


@given(CONFIGS)
def test_a_file_says_the_same(
    tmp_path_factory: pytest.TempPathFactory, config: TrainConfig
) -> None:
    file = tmp_path_factory.mktemp("config") / "run.toml"
    file.write_text(
        tomli_w.dumps({name.replace("_", "-"): getattr(config, name) for name in FIELDS}),
        encoding="utf-8",
    )
    assert config_from({}, file) == config


def test_a_flag_goes_over_the_file(tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text('steps = 10\nbatch = 4\nstrategy = "dense"\n')
    config = config_from(parsed(["--steps", "20"]), file)
    assert (config.steps, config.batch, config.strategy) == (20, 4, "dense")


def test_all_reasons_come_at_once(tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text('step = 10\nbatch = "many"\nresume = 1\nlr = -1.0\nmodel = ["a"]\n')
    with pytest.raises(ConfigError) as error:
        config_from({}, file)
    lines = str(error.value).splitlines()
    assert len(lines) == 5
    assert "did you mean 'steps'?" in lines[0]
    assert all(str(file) in line for line in lines)


@pytest.mark.parametrize("text", ["[steps", "steps = ", "\xff"])
def test_no_toml(tmp_path: Path, text: str) -> None:
    file = tmp_path / "run.toml"
    file.write_bytes(text.encode("latin-1"))
    with pytest.raises(ConfigError, match=r"is not TOML"):
        config_from({}, file)


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        config_from({}, tmp_path / "run.toml")


def test_to_go_on_and_to_delete_contradict_each_other() -> None:
    with pytest.raises(ConfigError, match="give one of them"):
        config_from({"resume": True, "overwrite": True}, None)


@pytest.mark.parametrize(
    "flags",
    [
        ["--steps", "0"],
        ["--steps", "1.5"],
        ["--lr", "nan"],
        ["--lr", "inf"],
        ["--seed", "-1"],
        ["--seed", str(1 << 63)],
        ["--precision", "fp8"],
    ],
)
def test_a_value_that_cannot_be(flags: list[str]) -> None:
    with pytest.raises(argparse.ArgumentError):
        parsed(flags)
