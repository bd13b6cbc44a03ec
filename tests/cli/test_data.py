"""`thinwire data pack`, and `thinwire train` on what it made: from a folder, and from a server
while a rank reads."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.data.server import Site, served
from thinwire.cli.main import main

TINY = [
    "--model=gpt2-nano,n_layer=1,n_head=2,n_embd=16",
    "--context=16",
    "--batch=2",
    "--windows=8",
    "--sample=0",
    "--strategy=dense",
]


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pack")
    (folder / "novel.txt").write_text(
        "".join(f"Paragraph {number} is long enough to be one.\n\n" for number in range(600))
    )
    assert (
        main(
            [
                "data",
                "pack",
                f"--data={folder / 'novel.txt'}",
                f"--out={folder / 'set'}",
                "--shard=4",
            ]
        )
        == 0
    )
    return folder / "set"


def losses(data: str, out: Path) -> list[float]:
    assert (
        main(
            ["train", *TINY, "--steps=12", f"--data={data}", f"--out={out}", f"--cache={out}-cache"]
        )
        == 0
    )
    told = json.loads((out / "run.json").read_text())
    assert 0 <= told["result"]["time_shares"]["input"] < 1
    curve: list[float] = told["curve"]["train"]
    return curve


def test_a_run_on_a_set_is_the_same_wherever_it_lies(packed: Path, tmp_path: Path) -> None:
    here = losses(f"set:{packed}", tmp_path / "here")
    with served(Site(folder=packed)) as site:
        there = losses(f"set:{site.url}/", tmp_path / "there")
        assert any("train-" in path for path, _ in site.asked)
    assert here == there
    assert len(here) == 12


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (["--data={set}", "--tokenizer=byte"], "comes with its own tokenizer"),
        (["--data=set:/nowhere"], "cannot be read"),
        (["--data=set:"], "names no set"),
    ],
    ids=range(3),
)
def test_a_set_that_cannot_be_is_one_line(
    packed: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], flags: list[str], line: str
) -> None:
    asked = [flag.format(set=f"set:{packed}") for flag in flags]
    assert main(["train", *TINY, "--steps=4", *asked, f"--out={tmp_path / 'out'}"]) == 2
    assert line in capfd.readouterr().err


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (["--data=nowhere.txt"], "nowhere.txt"),
        (["--data=bundled", "--shard=1"], "a shard has at least 4 KiB"),
        (["--data=bundled", "--tokenizer=bite"], "did you mean 'byte'"),
    ],
    ids=range(3),
)
def test_what_cannot_be_packed_is_one_line(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], flags: list[str], line: str
) -> None:
    assert main(["data", "pack", *flags, f"--out={tmp_path / 'set'}"]) == 2
    assert line in capfd.readouterr().err
    assert not (tmp_path / "set").exists()


def test_packing_twice_into_one_folder_is_refused(
    packed: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["data", "pack", "--data=bundled", f"--out={packed}"]) == 2
    assert "is there already" in capfd.readouterr().err
