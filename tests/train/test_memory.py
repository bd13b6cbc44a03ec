"""Workers that memory does not hold are refused before any is started; one rank is measured only
where it may matter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.train.runs import small
from thinwire.cli.main import main
from thinwire.errors import ConfigError
from thinwire.train import memory
from thinwire.train.config import TrainConfig
from thinwire.train.memory import GB, Usage, free_bytes, measured, must_fit

MB = 1 << 20


def bounded(
    monkeypatch: pytest.MonkeyPatch, free: int, usage: Usage | None = None
) -> list[TrainConfig]:
    """A machine with so much free; whose ranks take `usage`. What was measured."""
    asked: list[TrainConfig] = []

    def measure(config: TrainConfig, threads: int) -> Usage:
        asked.append(config)
        assert usage is not None
        return usage

    monkeypatch.setattr(memory, "free_bytes", lambda: (free, "MemAvailable"))
    monkeypatch.setattr(memory, "measured", measure)
    return asked


def test_a_thousand_workers_are_refused_with_numbers_and_a_remedy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = bounded(monkeypatch, int(23 * GB), Usage(own=int(0.4 * GB), shared=int(0.2 * GB)))
    with pytest.raises(ConfigError) as refused:
        must_fit(small(workers=1000), 1)
    said = str(refused.value)
    assert "--workers 1000 need 400.2 GB of memory, and 23.0 GB are free (MemAvailable)" in said
    assert "takes 0.40 GB, and all share 0.20 GB. Take --workers 57 or fewer" in said
    assert "--force starts them nevertheless" in said
    must_fit(small(workers=57), 1)
    assert len(asked) == 2
    must_fit(small(workers=1000, force=True), 1)
    assert len(asked) == 2


def test_where_not_even_one_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    bounded(monkeypatch, int(0.1 * GB), Usage(own=int(0.4 * GB), shared=0))
    with pytest.raises(ConfigError, match=r"Take a smaller model or --batch; --force"):
        must_fit(small(workers=2), 1)


def test_an_ordinary_run_measures_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked = bounded(monkeypatch, int(20 * GB))
    must_fit(small(workers=8), 1)
    must_fit(small(workers=1), 1)
    assert asked == []
    (tmp_path / "model.safetensors").touch()
    with (tmp_path / "model.safetensors").open("r+b") as large:
        large.truncate(int(2 * GB))  # a sparse file: a saved model of this size is measured
    monkeypatch.setattr(memory, "measured", lambda *_: Usage(int(9 * GB), 0))
    must_fit(small(workers=2, model=str(tmp_path)), 1)
    with pytest.raises(ConfigError, match="Take --workers 2 or fewer"):
        must_fit(small(workers=3, model=str(tmp_path)), 1)


@pytest.mark.long
def test_a_rank_is_measured_as_it_trains(tmp_path: Path) -> None:
    """Of each of 64 million parameters: weights, gradients and AdamW's two averages, 16 bytes,
    beside what Python and torch take."""
    wide = "gpt2-nano,n_layer=1,n_head=2,n_embd=2304"
    usage = measured(small(model=wide, workers=4, cache=str(tmp_path)), 1)
    assert 64e6 * 16 < usage.own < 64e6 * 16 + 1.5 * GB
    assert 10 * MB < usage.shared < GB


def test_the_command_starts_none_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    bounded(monkeypatch, int(23 * GB), Usage(own=int(0.4 * GB), shared=int(0.2 * GB)))
    assert main(["train", "--workers=1000", f"--out={tmp_path / 'out'}"]) == 2
    assert (
        "thinwire train: --workers 1000 need 400.2 GB of memory, and 23.0 GB are free"
        in capfd.readouterr().err
    )
    assert not (tmp_path / "out").exists()


def test_what_cannot_be_is_said_instead_of_measured() -> None:
    with pytest.raises(ConfigError, match=r"^no model is called 'gpt3-nano'"):
        measured(small(model="gpt3-nano"), 1)


GROUP: dict[str, Any] = {"v2": ("0::/a/b", "", "memory.max", "memory.current", "inactive_file")}
GROUP["v1"] = (
    "4:cpu,memory:/a/b",
    "memory",
    "memory.limit_in_bytes",
    "memory.usage_in_bytes",
    "total_inactive_file",
)


@pytest.mark.parametrize("version", ["v1", "v2"])
@pytest.mark.parametrize("inside", ["a/b", "a", ""])
def test_a_control_group_above_bounds_what_is_free(
    version: str, inside: str, tmp_path: Path
) -> None:
    line, top, limit, usage, cache = GROUP[version]
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/meminfo").write_text(f"MemTotal: 99 kB\nMemAvailable: {800 * 1024} kB\n")
    assert free_bytes(tmp_path) == (800 * MB, "MemAvailable"), "no control groups here"
    (tmp_path / "proc/self/cgroup").write_text(f"9:pids:/c\n{line}\n")
    group = tmp_path / "sys/fs/cgroup" / top / inside
    group.mkdir(parents=True)
    (group / limit).write_text("max\n")
    assert free_bytes(tmp_path) == (800 * MB, "MemAvailable")
    (group / limit).write_text(f"{500 * MB}\n")
    (group / usage).write_text(f"{300 * MB}\n")
    (group / "memory.stat").write_text(f"anon 7\n{cache} {100 * MB}\n")
    assert free_bytes(tmp_path) == (300 * MB, f"the limit of {group}")
