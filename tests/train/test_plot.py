"""Pictures of runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.conftest import NUMEL, STEPS, WORLD, a_run
from thinwire.core import allreduce_nbytes
from thinwire.train.plot import draw, sent_megabytes


def test_a_picture_is_the_same_bytes_whatever_the_style(tmp_path: Path) -> None:
    import matplotlib

    runs, names = [a_run(), a_run("diloco,period=20", 2.1, 8e3)], ["$dense", "速い_<&>"]
    first = draw(runs, names, tmp_path / "a.svg").read_bytes()
    with matplotlib.rc_context({"axes.facecolor": "black", "font.size": 30, "lines.linewidth": 9}):
        assert draw(runs, names, tmp_path / "b.svg").read_bytes() == first
        assert matplotlib.rcParams["font.size"] == 30
    assert [each.name for each in sorted(tmp_path.iterdir())] == ["a.svg", "b.svg"]


def test_one_rank_that_sent_nothing_has_one_panel(tmp_path: Path) -> None:
    alone = a_run(sent=0.0)
    alone["world"], alone["result"]["sent_bytes"], alone["result"]["around_bytes"] = 1, [0.0], [0.0]
    text = draw([alone], ["alone"], tmp_path / "a.svg").read_text()
    assert text.count('id="axes_') == 1
    assert draw([a_run()], ["dense"], tmp_path / "b.svg").read_text().count('id="axes_') == 2


def test_bytes_of_a_step_are_those_of_its_flights() -> None:
    flight = allreduce_nbytes(4 * NUMEL, WORLD) / 1e6
    assert sent_megabytes(a_run()) == pytest.approx([flight * (step + 1) for step in range(STEPS)])
    late = sent_megabytes(a_run("post_local_sgd,start=4,period=18", sent=6 * flight * 1e6))
    assert late[:4] == pytest.approx([flight, 2 * flight, 3 * flight, 4 * flight])
    assert late[20:23] == pytest.approx([4 * flight, 5 * flight, 5 * flight])
    assert late[-1] == pytest.approx(6 * flight)
    strided = sent_megabytes(a_run("local_sgd,period=2", sent=5e3, accumulate=4))
    assert [step + 1 for step in range(1, STEPS) if strided[step] > strided[step - 1]] == [
        8,
        16,
        24,
        32,
        40,
    ]
