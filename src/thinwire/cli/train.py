"""`thinwire train`: train a language model on one or more ranks."""

from __future__ import annotations

import argparse

from thinwire import env
from thinwire.text.output import CommandOutput
from thinwire.train.config import FIELDS, add_flags, config_from

ABOUT = """\
Train a language model from scratch, or continue training one, with little traffic between ranks.

    thinwire train --workers 2                               a small Llama on bundled English
    thinwire train --workers 2 --strategy diloco,period=30   `thinwire recipes` lists strategies
    thinwire train --model t5-nano --data my/texts --tokenizer bpe,vocab=4096
    thinwire train --config run.toml --resume                settings from a file; continue a run
    thinwire train --workers 4 --parallel fsdp --shards 2    two replicas of two ranks each
    thinwire train --nodes 2 --node-rank 0 --master 10.0.0.1:29500
                                                             machine 0 of 2; then --node-rank 1
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    add_flags(parser)


def run(options: argparse.Namespace, output: CommandOutput) -> int:
    given = {name: value for name, value in vars(options).items() if name in FIELDS}
    config = config_from(given, getattr(options, "config", None))
    if env.launched():  # a launcher has started this rank
        env.put_default(
            "TORCH_CPP_LOG_LEVEL", "ERROR"
        )  # before torch is loaded: we say ourselves what does not connect
        from thinwire.train.rank import run_rank

        return run_rank(config, output)
    from thinwire.train.launch import launch

    return launch(config, output)
