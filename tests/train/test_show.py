"""How a run looks: one live line on a terminal, few lines elsewhere, a table at the end."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest
from rich.console import Console

from tests.ranks import run_ranks
from tests.train.runs import result, small
from thinwire.engine import Report, Row
from thinwire.train.result import Progress
from thinwire.train.show import Lines, LiveLine, figures


def progress_at(step: int) -> Progress:
    return Progress(
        step,
        100,
        2.5,
        2.0,
        1024 * step,
        Report(2, step, (Row("bucket 0", 250_000, step, 5e4 * step, exposed_s=0.1),), 0.0),
    )


def test_elsewhere_only_validations_are_told() -> None:
    out = io.StringIO()
    show = Lines(Console(file=out, width=100))
    for step in range(1, 101):
        show.step(progress_at(step))
        if step % 50 == 0:
            show.validated(step, 2.25)
    assert out.getvalue().splitlines() == [
        (
            "step 50  validation 2.2500 nats/token  training 2.500  25,600 tokens/s  50.0 "
            "kB/step, 20.0x fewer"
        ),
        (
            "step 100  validation 2.2500 nats/token  training 2.500  51,200 tokens/s  50.0 "
            "kB/step, 20.0x fewer"
        ),
    ]


@pytest.mark.parametrize("width", [80, 120, 160])
def test_a_terminal_has_one_live_line(width: int) -> None:
    out = io.StringIO()
    show = LiveLine(Console(file=out, force_terminal=True, width=width))
    show.begin(result(small()).setting, 0)
    for step in range(1, 101):
        show.step(progress_at(step))
    show.close()
    assert "100/100  loss 2.500  51,200 tokens/s" in out.getvalue()
    assert 2 <= out.getvalue().count("51,200 tokens/s") < 50, "the line is drawn now and then"


@pytest.mark.parametrize("width", [60, 80, 120])
def test_the_table_fits_and_tells_what_run_json_tells(width: int) -> None:
    done = result(small())
    told: dict[str, Any] = json.loads(done.to_json())
    text = figures(done, width)
    assert max(map(len, text.splitlines())) <= width
    assert f"{told['result']['validation_nats_per_token']:.4f}" in text
    assert f"{told['result']['validation_bits_per_byte']:.4f}" in text
    assert told["result"]["ratio"] is None
    assert told["result"]["validation_bits_per_byte"] == pytest.approx(
        done.nats / 0.693147 * 291_482 / 291_461, rel=1e-4
    )


def test_masks_have_no_bits_per_byte() -> None:
    done = result(
        small(
            model="bert-nano,num_hidden_layers=1,hidden_size=16,intermediate_size=32,num_attention_heads=2"
        )
    )
    assert done.bits_per_byte is None
    assert "that was hidden" in figures(done, 80)


def _closing(rank: int) -> tuple[str, dict[str, Any], list[float], str]:
    done = result(small(strategy="fedpaq,period=2", steps=4, validate_every=3))
    return (
        figures(done, 120),
        done.figures()["result"],
        [sum(each.values()) for each in done.around],
        str(done.end.report),
    )


def test_what_is_sent_beside_the_schedule_is_named_by_its_cause() -> None:
    """A short run sends more for the link probe than for all its steps, and the table says so."""
    (table, told, sums, shown), (_, others, *_) = run_ranks(2, _closing)
    assert told["around"] == others["around"]
    assert sums == pytest.approx(told["around_bytes"])
    for each in told["around"]:
        assert {
            "link probe",
            "first weights",
            "agreeing at the start",
            "validation",
            "votes",
            "checks",
        } <= set(each)
    lines = {line.split("  ")[0].strip() or "": line for line in table.splitlines()}
    start = next(line for line in table.splitlines() if "once, at start" in line)
    assert "link probe" in start
    assert "first weights" in start
    beside = next(line for line in table.splitlines() if line.strip().startswith("beside it"))
    assert "validation" in beside
    assert "link probe" not in beside
    assert "link probe" in shown, "sync.report() has it, too"
    assert told["ratio"] > told["ratio_running"] > told["ratio_all"]
    once = sum(
        each[name]
        for each in told["around"]
        for name in ("link probe", "first weights", "agreeing at the start")
    )
    going = sum(told["sent_bytes"]) + sum(told["around_bytes"]) - once
    assert told["ratio_running"] == pytest.approx(told["dense_bytes"] / going)
    assert f"{told['ratio_all']:.1f}x" in next(
        line for line in table.splitlines() if "with the start, too" in line
    )
    assert "fewer bytes" in lines
