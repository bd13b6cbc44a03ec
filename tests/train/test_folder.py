"""An output folder is one run's alone, and nothing that is not a run's is ever deleted."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from thinwire.errors import ConfigError
from thinwire.train.config import TrainConfig, config_from
from thinwire.train.folder import RunFolder


def used(path: Path) -> Path:
    """A folder in which a run was."""
    folder = RunFolder(path).acquire(resume=False, overwrite=False)
    folder.write_config(TrainConfig(steps=7))
    (path / "checkpoints" / "host-ant").mkdir(parents=True)
    folder.close()
    return path


def test_a_run_is_not_written_over(tmp_path: Path) -> None:
    used(tmp_path / "out")
    with pytest.raises(ConfigError, match=r"--resume continues it, --overwrite deletes it"):
        RunFolder(tmp_path / "out").acquire(resume=False, overwrite=False)
    RunFolder(tmp_path / "out").acquire(resume=True, overwrite=False)
    assert (tmp_path / "out" / "checkpoints").exists()


def test_overwrite_deletes_what_is_ours_only(tmp_path: Path) -> None:
    out = used(tmp_path / "out")
    (out / "notes.txt").write_text("mine")
    RunFolder(out).acquire(resume=False, overwrite=True)
    assert sorted(path.name for path in out.iterdir()) == [".lock", "notes.txt"]


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_of_something_else_is_left_alone(tmp_path: Path, overwrite: bool) -> None:
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(ConfigError, match=r"thesis\.tex"):
        RunFolder(tmp_path).acquire(resume=False, overwrite=overwrite)
    assert (tmp_path / "thesis.tex").read_text() == "mine"


def test_one_process_at_a_time(tmp_path: Path) -> None:
    make = f"RunFolder(Path({str(tmp_path / 'out')!r})).acquire(resume=False, overwrite=False)"
    code = (
        f"from pathlib import Path; from thinwire.train.folder import RunFolder; kept = {make}; "
        "print('held', flush=True); input()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(ConfigError, match="another run that is going on"):
            RunFolder(tmp_path / "out").acquire(resume=True, overwrite=False)
        other.kill()  # the kernel lets go of the lock
    RunFolder(tmp_path / "out").acquire(resume=True, overwrite=False)


def test_hosts_of_one_run_may_share_a_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "1",
        "MASTER_ADDR": "ant",
        "MASTER_PORT": "29500",
    }.items():
        monkeypatch.setenv(name, value)
    first = RunFolder(tmp_path).acquire(resume=False, overwrite=False)
    first.write_config(TrainConfig(steps=7))
    second = RunFolder(tmp_path).acquire(resume=False, overwrite=False)
    monkeypatch.setenv("MASTER_PORT", "29501")
    with pytest.raises(ConfigError, match="another run that is going on"):
        RunFolder(tmp_path).acquire(resume=True, overwrite=True)
    second.close()
    with pytest.raises(ConfigError, match="another run that is going on"):
        RunFolder(tmp_path).acquire(resume=True, overwrite=True)
    first.close()
    RunFolder(tmp_path).acquire(resume=True, overwrite=False)
    assert (tmp_path / "config.toml").exists()


def test_a_file_in_its_place(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"--out .*"):
        RunFolder(tmp_path / "file" / "below").acquire(resume=False, overwrite=False)


def test_config_toml_says_the_run_again(tmp_path: Path) -> None:
    config = TrainConfig(steps=7, strategy="diloco,period=3", lr=1e-3, out="elsewhere")
    RunFolder(tmp_path / "out").acquire(resume=False, overwrite=False).write_config(config)
    assert config_from({"out": "elsewhere"}, tmp_path / "out" / "config.toml") == config
