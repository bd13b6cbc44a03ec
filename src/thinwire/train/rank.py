"""Run one rank: from settings to an exit code.

0: trained; 1: a rank was lost, ranks disagree, training diverged or a checkpoint failed; 2: the
settings are invalid; 130, 143: stopped by a signal.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import signal
import sys
import traceback
from contextlib import closing
from datetime import timedelta
from pathlib import Path

from thinwire import env
from thinwire.drive.interfaces import resolve
from thinwire.errors import (
    CheckpointError,
    DisagreementError,
    FlightError,
    RankLostError,
    ThinwireError,
)
from thinwire.launch.child import LAUNCHER, StopSignal, end_with_parent, interruptible, write_error
from thinwire.text.output import CommandOutput, rank
from thinwire.train.config import TrainConfig
from thinwire.train.folder import RunFolder, default_out

START = timedelta(minutes=10)  # until all ranks are there


def run_rank(config: TrainConfig, output: CommandOutput) -> int:
    """Train as the rank that the launcher's variables name, or alone, and return the exit code."""
    end_with_parent()
    absent = [
        name
        for name in ("transformers", "rich", "tensorboard", "matplotlib")
        if importlib.util.find_spec(name) is None
    ]
    if absent:
        return _ends(output, f"{', '.join(absent)} not installed: pip install 'thinwire[train]'", 2)
    try:
        code = _guarded(default_out(config), output)
    except Exception:  # a fault of ours: print all of it, and end without waiting for threads
        traceback.print_exc()
        code = 1
    if code and env.launched():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)  # threads that wait for a lost rank would hold up the end
    return code


def _guarded(config: TrainConfig, output: CommandOutput) -> int:
    stop = StopSignal()
    try:
        # Exit codes: 1 for what happened on the way, 2 for what was wrong before the first step.
        _train(config, output, stop)
    except RankLostError as error:
        world = env.world_size()
        # The first rank that is left prints for all.
        return _ends(
            output,
            str(error),
            1,
            by_rank=min(set(range(world)) - set(error.ranks), default=0),
        )
    except ThinwireError as error:
        on_the_way = isinstance(error, CheckpointError | DisagreementError | FlightError)
        return _ends(output, str(error), 1 if on_the_way else 2)
    except (FloatingPointError, MemoryError) as error:
        return _ends(output, str(error) or "out of memory", 1, by_rank=rank())
    except (InterruptedError, KeyboardInterrupt) as error:
        code = 128 + (stop.number or signal.SIGINT)
        if isinstance(error, InterruptedError) and not stop.number:
            # another rank had the signal: this rank's launcher must not start it again
            code = 0
        return _ends(output, str(error) or "interrupted before training began", code)
    except OSError as error:  # InterruptedError is one, too
        return _ends(
            output, f"{error.filename or config.out}: {error.strerror or error}", 1, by_rank=rank()
        )
    return 0


def _ends(output: CommandOutput, reason: str, code: int, by_rank: int = 0) -> int:
    """Print the reason once on each machine, write it for the launcher, and return the exit
    code."""
    if _leads():  # of another machine, perhaps, whose console shows nothing of the speaker's
        by_rank = rank()
    write_error(reason, printed=rank() == by_rank)
    # Under the launcher with --json, the launcher prints the one object.
    if env.text(LAUNCHER) and output.as_json and env.launched():
        output = CommandOutput(output.program, as_json=False)
    output.failure(reason, by_rank)
    return code


def _leads() -> bool:
    """Return whether this is the first rank of its host."""
    return env.local_rank() == 0


def _train(config: TrainConfig, output: CommandOutput, stop: StopSignal) -> None:
    with closing(RunFolder(Path(config.out))) as folder:
        if _leads():
            folder.acquire(resume=config.resume, overwrite=config.overwrite)
        if folder.restarted:  # started again by the same launcher
            config = dataclasses.replace(config, resume=True, overwrite=False)
        _train_in(folder, config, output, stop)


def _train_in(
    folder: RunFolder, config: TrainConfig, output: CommandOutput, stop: StopSignal
) -> None:
    world = env.world_size()
    # Refused before torch is loaded, which takes seconds.
    if world > 1 and env.text("MASTER_ADDR"):
        resolve(env.text("MASTER_ADDR"), "MASTER_ADDR")
    import torch.distributed as dist

    from thinwire.launch.rendezvous import meeting
    from thinwire.train.job import run
    from thinwire.train.outputs import write_outputs
    from thinwire.train.resume import Saver
    from thinwire.train.setup import prepare_run
    from thinwire.train.show import figures, show_on

    # 1. What needs no other rank: the store's address, then text and model, which may take their
    # time.
    meets = (
        meeting(lambda text: output.note(text, by_rank=rank() if _leads() else 0))
        if world > 1
        else None
    )
    prepared = prepare_run(config)
    prepared.model()
    # 2. Meet the others.
    if meets is not None:
        with interruptible():
            meets.join("nccl" if prepared.device.type == "cuda" else "gloo", START)
    # 3. Train, and write what came of it.
    saver = Saver(
        folder, every=config.save_every, keep=config.keep, resume=config.resume, output=output
    )
    show = show_on(folder)
    with closing(show), stop.listening():
        result = run(prepared, show, saver, lambda: bool(stop.number))
    if world > 1:
        dist.destroy_process_group()
    if rank() == 0:
        result = write_outputs(folder, result)
        output.result(result.figures(), figures(result))
