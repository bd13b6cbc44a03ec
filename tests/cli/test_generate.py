"""`thinwire generate`: models of each kind, from folders; and prompts that cannot be."""

import io
import json
from pathlib import Path

import pytest
import torch

from thinwire.cli.main import main
from thinwire.data.corpus.text import Text
from thinwire.data.corpus.tokenizer import tokenizer_from
from thinwire.models.build import kind_of, model_from
from thinwire.models.objectives import objective_from

PROMPTS = {
    "causal": "To be",
    "masked": "To be, or not to <mask>",
    "spans": "To be, or <extra_id_0> that is",
}
MODELS = {
    "causal": "gpt2-nano,n_layer=1",
    "masked": "bert-nano,num_hidden_layers=1",
    "spans": "t5-nano,num_layers=1",
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's folder for each kind of model, named after it."""
    root = tmp_path_factory.mktemp("runs")
    for kind, spoken in MODELS.items():
        assert kind_of(spoken) == kind
        tokenizer = tokenizer_from("byte", Text("none", (), ()), objective_from(kind, 64).specials)
        torch.manual_seed(0)
        model_from(spoken, tokenizer, 64).save_pretrained(root / kind / "model")
        tokenizer.save_pretrained(root / kind / "model")
    return root


class Piped(io.TextIOWrapper):
    def __init__(self, data: bytes) -> None:
        super().__init__(io.BytesIO(data), encoding="utf-8")


@pytest.mark.parametrize("kind", MODELS)
def test_each_kind_answers_as_it_does(
    kind: str, saved: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    words = [
        "generate",
        "--model",
        str(saved / kind),
        "--prompt",
        PROMPTS[kind],
        "--tokens",
        "6",
        "--json",
    ]
    assert main(words) == 0
    out, err = capfd.readouterr()
    told = json.loads(out)
    assert (out.count("\n"), err) == (1, "")
    assert (told["prompt"], told["seed"], told["model"]) == (
        PROMPTS[kind],
        0,
        str(saved / kind / "model"),
    )
    assert told["text"].startswith("To be")
    assert "<" not in told["text"].replace(PROMPTS[kind], "") or kind == "causal"
    assert main(words) == 0
    assert json.loads(capfd.readouterr().out) == told


def test_the_seed_and_the_temperature_matter(
    saved: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    def text(*more: str) -> str:
        assert (
            main(
                [
                    "generate",
                    "--model",
                    str(saved / "causal"),
                    "--prompt",
                    "To be",
                    "--tokens",
                    "30",
                    "--json",
                    *more,
                ]
            )
            == 0
        )
        return str(json.loads(capfd.readouterr().out)["text"])

    assert text("--seed", "1") != text("--seed", "2")
    assert text("--seed", "1", "--temperature", "0") == text("--seed", "2", "--temperature", "0")


def test_the_prompt_may_come_on_standard_input(
    saved: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", Piped(b"To be\n"))
    assert (
        main(["generate", "--model", str(saved / "causal" / "model"), "--tokens", "0", "--json"])
        == 0
    )
    told = json.loads(capfd.readouterr().out)
    assert (told["prompt"], told["text"]) == ("To be", "To be")


def test_what_would_drive_a_terminal_is_not_printed(
    saved: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert (
        main(
            ["generate", "--model", str(saved / "causal"), "--prompt", "a\x1b[2J", "--tokens", "0"]
        )
        == 0
    )
    assert "\x1b" not in capfd.readouterr().out


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--model", "{root}/causal", "--prompt", ""], "the prompt is empty"),
        (["--model", "{root}/nowhere", "--prompt", "x"], "there is no such folder"),
        (
            ["--model", "nope"],
            (
                "--model nope: there is no such folder; give a run's folder, one that "
                "save_pretrained wrote, or hf:NAME; `thin"
            ),
        ),
        (
            ["--model", "{root}/half/config.toml", "--prompt", "x"],
            "this is a file, and a model is a folder",
        ),
        (["--model", "gpt2-nano", "--prompt", "x"], "there is no such folder"),
        (["--model", "{root}", "--prompt", "x"], "the folder holds no model"),
        (["--model", "{root}/half", "--prompt", "x"], "a run that is not finished"),
        (["--model", "{root}/masked", "--prompt", "no gap"], "has no <mask>"),
        (["--model", "{root}/spans", "--prompt", "no gap"], "has no <extra_id_0>"),
        (["--model", "{root}/causal", "--prompt", "x", "--temperature", "-1"], "take 0 or more"),
        (["--model", "{root}/causal", "--prompt", "x", "--temperature", "nan"], "take 0 or more"),
    ],
)
def test_what_cannot_be_is_one_line(
    words: list[str], says: str, saved: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (saved / "half").mkdir(exist_ok=True)
    (saved / "half" / "config.toml").touch()
    assert main(["generate", *(word.format(root=saved) for word in words)]) == 2
    out, err = capfd.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert says in err


def test_runs_that_look_like_a_missing_model_are_named(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").symlink_to(saved)
    assert main(["generate", "--model", "runs/maskd", "--prompt", "x"]) == 2
    assert "there is no such folder; did you mean 'masked'?; give" in capfd.readouterr().err
    assert main(["generate", "--model", "zzz", "--prompt", "x"]) == 2
    assert "trained here: runs/causal, runs/masked, runs/spans" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("data", "says"),
    [(b"", "the prompt is empty"), (b"\n", "the prompt is empty"), (b"\xff", "not UTF-8")],
)
def test_standard_input_that_cannot_be(
    data: bytes,
    says: str,
    saved: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("sys.stdin", Piped(data))
    assert main(["generate", "--model", str(saved / "causal")]) == 2
    assert says in capfd.readouterr().err
