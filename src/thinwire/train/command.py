"""The training command: from flags to an exit code.

0: trained; 1: a rank was lost, ranks disagree or training diverged; 2: what was asked cannot be; 130, 143: stopped. Errors are one line.
"""

from __future__ import annotations

import importlib.util
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from datetime import timedelta
from typing import Any

from thinwire.train.options import Options, complain, parse, rank


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; the exit code."""
    options = parse(arguments)
    with _termination() as asked:
        return _prepare(options, asked)


def _prepare(options: Options, asked: Callable[[], bool]) -> int:
    if importlib.util.find_spec("rich") is None:
        complain("the training command shows itself with rich, which is not installed: pip install 'thinwire[train]'")
        return 2
    from thinwire.errors import StrategyError
    from thinwire.train.spoken import strategy_from

    try:
        strategy = strategy_from(options.strategy)
        if options.out is not None:
            options.out.mkdir(parents=True, exist_ok=True)
    except StrategyError as error:
        complain(str(error))
        return 2
    except OSError as error:
        complain(f"--out {options.out}: {error.strerror}")
        return 2
    return _train(options, strategy, asked)


def _train(options: Options, strategy: Any, asked: Callable[[], bool]) -> int:
    import torch.distributed as dist

    from thinwire.errors import RankLostError, StrategyError, ThinwireError
    from thinwire.train.job import Job, run
    from thinwire.train.show import Show, show_on, standard

    timeout = timedelta(seconds=options.timeout_s)
    job = Job(strategy, options.steps, options.batch, options.lr, options.seed, timeout)
    world = int(os.environ.get("WORLD_SIZE", "1"))
    show = show_on(standard()) if rank() == 0 else Show()
    try:
        with closing(show):
            if world > 1:
                dist.init_process_group("gloo", timeout=timeout)
            result = run(job, show, asked)
    except StrategyError as error:  # it fits no world of this size
        complain(str(error))
        return 2
    except ThinwireError as error:
        lost = error.ranks if isinstance(error, RankLostError) else ()
        complain(str(error), speaker=min(set(range(world)) - set(lost), default=0))
        return 1
    except FloatingPointError as error:
        complain(str(error))
        return 1
    except InterruptedError as error:
        complain(str(error))
        return 143
    except KeyboardInterrupt:
        complain("interrupted")
        return 130
    if world > 1:
        dist.destroy_process_group()
    if options.out is not None and rank() == 0:
        (options.out / "run.json").write_text(result.to_json(), encoding="utf-8")
    return 0


@contextmanager
def _termination() -> Iterator[Callable[[], bool]]:
    """Whether SIGTERM has come. It does not end the process at once: a launcher that has lost one rank stops the others with it, which
    need two seconds more to find out who is gone, and to say so."""
    came: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _: came.append(number))
    try:
        yield lambda: bool(came)
    finally:
        signal.signal(signal.SIGTERM, before)
