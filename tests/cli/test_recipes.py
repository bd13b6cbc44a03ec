"""`thinwire recipes`: all of them, and bytes that are those that an engine sends."""

import json
from typing import Any

import pytest

from thinwire import recipes
from thinwire.cli.main import main
from thinwire.how import gather
from thinwire.on import deltas
from thinwire.strategy import Strategy
from thinwire.when import every


def told(capfd: pytest.CaptureFixture[str], *words: str) -> Any:
    assert main(["recipes", "--json", *words]) == 0
    out = capfd.readouterr().out
    assert out.count("\n") == 1
    return json.loads(out)


def test_every_recipe_is_told(capfd: pytest.CaptureFixture[str]) -> None:
    rows = told(capfd)["recipes"]
    assert [row["recipe"] for row in rows] == list(recipes.names())
    for row in rows:
        assert Strategy.from_toml(row["toml"]) == eval(row["strategy"], members())
        if row["recipe"] in ("lag", "pulseloco"):  # the data decides
            assert row["bytes"]["sent_bytes"] is row["bytes"]["fewer"] is None
        else:
            assert row["bytes"]["fewer"] == pytest.approx(
                row["bytes"]["dense_bytes"] / row["bytes"]["sent_bytes"]
            )
        assert row["source"] or row["recipe"] in ("dense", "accumulation")


def test_a_codec_that_is_slower_than_its_link_is_told(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from thinwire.planner.codecs import Speed

    monkeypatch.setattr("thinwire.planner.codecs.speed", lambda _: Speed(1.0, 1.0, 14.0))
    assert main(["recipes", "for_link,gbits=100,node=8", "--world", "16"]) == 0
    assert "WARNING: a link of 100 Gb/s is faster" in " ".join(capfd.readouterr().out.split())
    assert told(capfd, "for_link,gbits=1")["speed"] == {
        "encode_ns": 1.0,
        "decode_ns": 1.0,
        "pays_below_gbits": 14.0,
        "gbits": 1.0,
    }


def members() -> dict[str, Any]:
    import thinwire.how
    import thinwire.on
    import thinwire.what
    import thinwire.when

    return {"Strategy": Strategy} | {
        key: value
        for each in (thinwire.how, thinwire.on, thinwire.what, thinwire.when)
        for key, value in vars(each).items()
    }


def test_one_recipe_with_settings(capfd: pytest.CaptureFixture[str]) -> None:
    one = told(capfd, "diloco,period=60")
    assert Strategy.from_toml(one["toml"]) == recipes.diloco(period=60)
    assert [(each["name"], each["type"], each["default"]) for each in one["settings"]] == [
        ("period", "int", 100),
        ("lr", "float", None),
        ("momentum", "float", 0.9),
    ]
    assert one["bytes"]["fewer"] == pytest.approx(60)


def test_a_setting_without_default_gets_an_example_that_is_told(
    capfd: pytest.CaptureFixture[str],
) -> None:
    assert main(["recipes", "two_level", "--world", "6"]) == 0
    assert "no default; here 3" in capfd.readouterr().out


def test_a_file_and_bytes_that_data_decide(
    tmp_path: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    from thinwire.what import feedback, threshold

    file = tmp_path / "mine.toml"
    file.write_text(Strategy(what=feedback(threshold(1.0)), how=gather()).to_toml())
    assert told(capfd, str(file))["bytes"]["sent_bytes"] is None
    assert main(["recipes", str(file)]) == 0
    assert "the data decides" in capfd.readouterr().out


@pytest.mark.parametrize("wide", [80, 120])
def test_the_table_fits(
    wide: int, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", str(wide))
    assert main(["recipes"]) == 0
    assert max(map(len, capfd.readouterr().out.splitlines())) <= wide


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["powersgd,rang=2"], "did you mean 'rank'?"),
        (["nothing.toml"], "cannot be read"),
        (["--world", "1"], "one rank has nobody to talk to"),
        (["two_level,node=3", "--world", "8"], "is no multiple of 3"),
        (["--parameters", "5", "--width", "4"], "give it, or them"),
        (["--model", "gpt2-nano", "--width", "4"], "has sizes of its own"),
        (["--model", "gpt2-nan"], "gpt2-nano"),
        (["streaming_diloco,fragments=90", "--layers", "1"], "only 4 parameters"),
    ],
)
def test_what_cannot_be_is_one_line(
    words: list[str], says: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["recipes", *words]) == 2
    out, err = capfd.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert says in err


def test_a_model_by_its_name(capfd: pytest.CaptureFixture[str]) -> None:
    one = told(capfd, "diloco", "--model", "gpt2-nano")
    assert one["reference"] == {"model": "gpt2-nano", "parameters": 484_512, "world": 8}
    assert one["memory"]["bytes"] == 3 * 4 * 484_512
    assert one["memory"]["a_parameter"] == 12
    assert one["bytes"]["fewer"] == pytest.approx(100)


def test_what_is_on_the_host_is_told(tmp_path: Any, capfd: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(Strategy(every(9), on=deltas(device="cpu")).to_toml())
    assert main(["recipes", str(file)]) == 0
    assert "in the host's memory" in capfd.readouterr().out
