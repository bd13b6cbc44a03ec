"""`thinwire generate`: continue a text with a trained model, or fill its gaps.

The kind of model decides: a decoder continues the text, an encoder replaces each `<mask>` with a
token, an encoder-decoder replaces each `<extra_id_0>`, `<extra_id_1>`, … with a span.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from thinwire.errors import ModelError
from thinwire.text.output import CommandOutput
from thinwire.text.words import near
from thinwire.train.values import whole

ABOUT = """\
Continue a text with a trained model, or fill its gaps.

    thinwire generate --model runs/mine --prompt "It was"          a decoder continues the text
    thinwire generate --model runs/bert --prompt "to <mask> or"    an encoder fills each <mask>
    thinwire generate --model runs/t5 --prompt "To <extra_id_0>."  a T5 fills each <extra_id_N>
    thinwire generate --model hf:openai-community/gpt2 < text.txt
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `thinwire generate`."""
    parser.add_argument(
        "--model",
        required=True,
        metavar="FOLDER",
        help="a run's folder, one that save_pretrained wrote, or hf:NAME",
    )
    parser.add_argument(
        "--prompt",
        metavar="TEXT",
        help="default: standard input, without its last line end",
    )
    parser.add_argument(
        "--tokens",
        type=whole,
        default=200,
        metavar="N",
        help="the most tokens to add; default 200",
    )
    parser.add_argument(
        "--temperature",
        type=float,
        metavar="X",
        help=(
            "0: the likeliest token, 1: as the model predicts; default 0.8 to continue, "
            "0 to fill gaps"
        ),
    )
    parser.add_argument(
        "--seed", type=whole, default=0, metavar="N", help="seed of sampling; default 0"
    )


def run(options: argparse.Namespace, output: CommandOutput) -> int:
    """Load the model, and print what it makes of the prompt."""
    path = model_path(options.model)
    prompt = _prompt(options.prompt)

    from thinwire.data.corpus.text import Text
    from thinwire.data.corpus.tokenizer import tokenizer_from
    from thinwire.models.build import kind_of, model_from
    from thinwire.models.objective import EOS, MASK, PAD, sentinel
    from thinwire.models.sample import sample
    from thinwire.train.show import printable

    specials = {"causal": (EOS,), "masked": (EOS, PAD, MASK), "spans": (EOS, PAD, sentinel(0))}[
        kind_of(path)
    ]
    tokenizer = tokenizer_from(path, Text("none", (), ()), specials)
    model = model_from(
        path, tokenizer, context=1
    )  # any prompt is cut to what the model reads, or refused, by `sample`
    text = sample(
        model, tokenizer, prompt, options.tokens, temperature=options.temperature, seed=options.seed
    )
    output.result(
        {"prompt": prompt, "text": text, "model": path, "seed": options.seed}, printable(text)
    )
    return 0


def model_path(spec: str) -> str:
    """Return the path of the model: `model` in a run's folder, or the folder itself.

    Raises:
        ModelError: no such folder, or a run that is not finished.

    Example:
        >>> model_path("hf:openai-community/gpt2")
        'hf:openai-community/gpt2'
    """
    if spec.startswith("hf:"):
        return spec
    folder = Path(spec).expanduser()
    if not folder.is_dir():
        do = "give a run's folder, one that save_pretrained wrote, or hf:NAME"
        if folder.is_file():
            raise ModelError(f"--model {spec}: this is a file, and a model is a folder; {do}")
        runs = [str(path.parent) for path in sorted(Path("runs").glob("*/model"))]
        beside = near(Path(spec).name, [Path(run).name for run in runs]).rstrip(".") or (
            f"; trained here: {', '.join(runs[:5])}" if runs else ""
        )
        raise ModelError(
            f"--model {spec}: there is no such folder{beside}; {do}; `thinwire train --out "
            f"{spec}` trains one"
        )
    inner = folder / "model"
    if (inner / "config.json").is_file():
        return str(inner.resolve())
    if not (folder / "config.json").is_file():
        what = (
            "a run that is not finished: `thinwire train --resume` continues it"
            if (folder / "config.toml").is_file()
            else "no model"
        )
        raise ModelError(f"--model {spec}: the folder holds {what}")
    return str(folder.resolve())  # a whole path: it is never taken for a preset's name


def _prompt(given: str | None) -> str:
    if given is None:
        if sys.stdin.isatty():
            raise ModelError("there is no prompt: give --prompt TEXT, or a text on standard input")
        try:
            given = sys.stdin.buffer.read().decode().removesuffix("\n")
        except UnicodeDecodeError as error:
            raise ModelError(f"standard input is not UTF-8 text ({error})") from error
    if not given:
        raise ModelError("the prompt is empty; give at least one letter")
    return given
