"""Break runs on four emulated hosts in 34 seeded ways, ask whom the surviving ranks blame, and
resume them from their checkpoints.

    python -m benchmarks.faults --seed 0 --json benchmarks/results/faults.json

Each fault strikes a run of top-k with feedback, DiLoCo or QSGD at a step that the seed draws: ranks
are killed (also the one that holds the store, also two), sent SIGTERM, stopped, cut off one way, or
raise an error. Then all four start again from the newest checkpoint that every rank has, and the
final weights must be the bits of a run that nothing happened to. The exit code is 1 where a target
is missed: no hang, no lost update, no wrong blame, 98 % of all verdicts right.
"""

from __future__ import annotations

import argparse
import atexit
import json
import os
import random
import select
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import nn

from thinwire import recipes
from thinwire.bench.records import environment
from thinwire.engine import Syncer, attach  # here, lest each fork imports it
from thinwire.errors import LinkLostError, RankLostError, ThinwireError
from thinwire.lab import Lab
from thinwire.lab.shape import DEV, address
from thinwire.lab.spaces import Child
from thinwire.lab.spaces import environment as paths
from thinwire.net import uniform

STRATEGIES = {"topk": recipes.topk_sgd(0.1), "diloco": recipes.diloco(4), "qsgd": recipes.qsgd(4)}
RANKS, STEPS, SAVE_EVERY, PACE_S = 4, 48, 8, 0.02
TIMEOUT_S = 5.0  # of a hop
STARTS = 4  # tries to begin a run
DIAGNOSIS_S = 20.0  # on top of it, until every survivor must have ended
KINDS = [
    *(
        ["kill"] * 6
        + ["kill host"] * 4
        + ["kill two"] * 4
        + ["sigterm"] * 4
        + ["stop"] * 4
        + ["stop host"] * 2
    ),
    *(["cut"] * 4 + ["cut to host"] + ["cut from host"] + ["raise"] * 4),
]
NOWHERE = "02:00:00:00:00:77"  # no host's
TARGET = 0.98


@dataclass(frozen=True)
class Fault:
    """What befalls a run. ranks: of a cut the sender and the receiver."""

    number: int
    kind: str
    strategy: str
    ranks: tuple[int, ...]
    step: int

    @property
    def survivors(self) -> list[int]:
        return [
            rank for rank in range(RANKS) if rank not in self.ranks or self.kind.startswith("cut")
        ]


def drawn(seed: int) -> list[Fault]:
    """The 34 faults of a seed."""
    draws, faults = random.Random(seed), []
    for number, kind in enumerate(KINDS):
        ranks: Sequence[int] = [draws.randrange(1, RANKS)]
        if kind in ("kill host", "stop host"):
            ranks = [0]
        elif kind == "kill two":
            ranks = sorted(draws.sample(range(RANKS), 2))
        elif kind == "cut":
            ranks = draws.sample(range(1, RANKS), 2)
        elif kind == "cut to host":
            ranks = [*ranks, 0]
        elif kind == "cut from host":
            ranks = [0, *ranks]
        elif kind == "raise":
            ranks = [draws.randrange(RANKS)]
        step = draws.randrange(SAVE_EVERY + 1, STEPS - 8)
        faults.append(
            Fault(number, kind, list(STRATEGIES)[number % len(STRATEGIES)], tuple(ranks), step)
        )
    return faults


# -- a rank, forked on its host
# ---------------------------------------------------------------------------------------


def serve() -> None:
    """Fork a rank for every line on standard input, and tell how each ends."""
    going: dict[int, dict[str, Any]] = {}
    pending = b""
    while True:
        if select.select([0], [], [], 0.05)[0]:
            data = os.read(0, 1 << 16)
            if not data:
                return
            *lines, pending = (pending + data).split(b"\n")
            for line in lines:
                asked = json.loads(line)
                if "signal" in asked:
                    os.kill(asked["pid"], asked["signal"])
                    continue
                pid = os.fork()
                if pid == 0:
                    forked(asked)
                going[pid] = asked
                say(run=asked["run"], rank=asked["rank"], pid=pid)
        while going:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if not pid:
                break
            asked = going.pop(pid)
            say(run=asked["run"], rank=asked["rank"], code=os.waitstatus_to_exitcode(status))


def say(**told: Any) -> None:
    os.write(1, json.dumps(told).encode() + b"\n")


def forked(asked: dict[str, Any]) -> None:
    """A rank's whole life, which ends as a script does: with an error printed, exit handlers
    called, and no more."""
    code = 0
    try:
        torch.set_num_threads(1)
        os.environ |= asked["environment"]
        begun = time.monotonic()
        try:
            train(asked)
        except ThinwireError as error:
            ranks, one_way = getattr(error, "ranks", ()), getattr(error, "one_way", False)
            kind, words = type(error).__name__, str(error)
            told = {
                "kind": kind,
                "ranks": list(ranks),
                "one_way": one_way,
                "words": words,
                "seconds": time.monotonic() - begun,
            }
            Path(asked["scratch"], f"verdict-{asked['run']}-{asked['rank']}.json").write_text(
                json.dumps(told)
            )
            raise
    except Exception as error:
        sys.last_value = error
        if not isinstance(error, ThinwireError):
            traceback.print_exc()
        code = 1
    atexit._run_exitfuncs()
    os._exit(code)


def train(asked: dict[str, Any]) -> None:
    """Steps on a small model, with a checkpoint now and then."""
    rank, folder = asked["rank"], Path(asked["folder"])
    dist.init_process_group("gloo", timeout=timedelta(seconds=60))
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 8)
    )
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    sync = attach(
        model,
        optimizer,
        STRATEGIES[asked["strategy"]],
        timeout=timedelta(seconds=TIMEOUT_S),
        bucket_bytes=1 << 14,
    )
    if asked["raises"] >= 0 and rank % 2:  # a loop without a context
        steps(asked, model, optimizer, sync)
        sync.close()
        return
    with sync:
        steps(asked, model, optimizer, sync)
        with sync.common_weights():
            save_file(
                {name: value.clone() for name, value in model.state_dict().items()},
                folder / f"final-{rank}.safetensors",
            )
        sync.check()


def steps(
    asked: dict[str, Any], model: nn.Module, optimizer: torch.optim.Optimizer, sync: Syncer
) -> None:
    rank, folder, first = asked["rank"], Path(asked["folder"]), asked["resume"]
    if first:
        saved = load_file(folder / f"{first}-{rank}.safetensors")
        model.load_state_dict(
            {name[2:]: value for name, value in saved.items() if name.startswith("m/")}
        )
        momenta = [value for name, value in sorted(saved.items()) if name.startswith("o/")]
        groups = optimizer.state_dict()["param_groups"]
        optimizer.load_state_dict(
            {
                "state": {i: {"momentum_buffer": each} for i, each in enumerate(momenta)},
                "param_groups": groups,
            }
        )
        sync.load_state_dict(
            {name[2:]: value for name, value in saved.items() if name.startswith("s/")}
        )
    for step in range(first, STEPS):
        if asked["raises"] == step:
            raise ValueError(f"boom at step {step}")
        draws = torch.Generator().manual_seed(1000 * step + rank)
        loss = (
            (model(torch.randn(16, 64, generator=draws)) - torch.randn(16, 8, generator=draws))
            .square()
            .mean()
        )
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        time.sleep(PACE_S)
        if (step + 1) % SAVE_EVERY == 0 and step + 1 < STEPS:
            whole = {f"m/{name}": value for name, value in model.state_dict().items()}
            state = optimizer.state_dict()["state"]
            whole |= {f"o/{i:03}": state[i]["momentum_buffer"] for i in state} | {
                f"s/{k}": v for k, v in sync.state_dict().items()
            }
            save_file(
                {name: value.clone().contiguous() for name, value in whole.items()},
                folder / f"part-{rank}",
            )
            (folder / f"part-{rank}").rename(folder / f"{step + 1}-{rank}.safetensors")
        say(run=asked["run"], rank=rank, step=step)


# -- the harness
# --------------------------------------------------------------------------------------------------


class Hosts:
    """The lab, with a server on each host."""

    def __init__(self, lab: Lab, scratch: Path) -> None:
        self.lab, self.scratch = lab, scratch
        self.runs = 0
        self._inputs: list[int] = []
        self._news = threading.Condition()
        self._pids: dict[tuple[int, int], int] = {}
        self._steps: dict[tuple[int, int], int] = {}  # the last step that each rank has done
        self.codes: dict[tuple[int, int], int] = {}
        self.servers: list[Child] = []
        for host in lab.hosts:
            here, mine = os.pipe(), os.pipe()
            argv = [sys.executable, "-m", "benchmarks.faults", "--serve"]
            self.servers.append(
                lab.popen(
                    host,
                    argv,
                    stdin=mine[0],
                    stdout=here[1],
                    stderr=2,
                    env=paths() | {"OMP_NUM_THREADS": "1"},
                )
            )
            os.close(mine[0])
            os.close(here[1])
            self._inputs.append(mine[1])
            threading.Thread(target=self._listen, args=(here[0],), daemon=True).start()

    def _listen(self, fd: int) -> None:
        with open(fd, encoding="utf-8") as pipe:
            for line in pipe:
                told = json.loads(line)
                key = told["run"], told["rank"]
                with self._news:
                    for name, kept in (
                        ("pid", self._pids),
                        ("step", self._steps),
                        ("code", self.codes),
                    ):
                        if name in told:
                            kept[key] = told[name]
                    self._news.notify_all()

    def start(
        self, strategy: str, folder: Path, resume: int = 0, raises: tuple[int, int] = (-1, -1)
    ) -> int:
        self.runs += 1
        for rank in range(RANKS):
            own = self.lab.environment(rank) | {"MASTER_PORT": str(20000 + self.runs)}
            asked = {
                "run": self.runs,
                "rank": rank,
                "strategy": strategy,
                "folder": str(folder),
                "resume": resume,
            }
            asked |= {
                "environment": own,
                "scratch": str(self.scratch),
                "raises": raises[1] if rank == raises[0] else -1,
            }
            os.write(self._inputs[rank], json.dumps(asked).encode() + b"\n")
        return self.runs

    def signal(self, run: int, rank: int, number: int) -> None:
        if (run, rank) not in self.codes:
            os.write(
                self._inputs[rank],
                json.dumps({"pid": self._pids[run, rank], "signal": int(number)}).encode() + b"\n",
            )

    def kill(self, run: int) -> None:
        """End what is left of a run."""
        for rank in range(RANKS):
            self.signal(run, rank, signal.SIGKILL)
        self.ended(run, range(RANKS), 20)

    def reached(self, run: int, step: int) -> bool:
        """Whether a run has come to a step in time."""
        with self._news:
            self._news.wait_for(
                lambda: (
                    self._at(run) >= step or any((run, rank) in self.codes for rank in range(RANKS))
                ),
                90,
            )
            return self._at(run) >= step

    def _at(self, run: int) -> int:
        return max(self._steps.get((run, rank), -1) for rank in range(RANKS))

    def ended(self, run: int, ranks: Sequence[int], limit_s: float) -> list[int]:
        """Wait for ranks to end; those that have not."""
        with self._news:
            self._news.wait_for(lambda: all((run, rank) in self.codes for rank in ranks), limit_s)
            return [rank for rank in ranks if (run, rank) not in self.codes]

    def cut(self, sender: int, receiver: int, heal: bool = False) -> None:
        """Nothing that one host sends reaches the other: it sends to an address of the link that
        nobody has."""
        neighbour = ["ip", "neigh", "del" if heal else "replace", address(receiver), "dev", DEV]
        self.lab.call(
            f"host{sender}",
            neighbour
            if heal
            else [*neighbour[:4], "lladdr", NOWHERE, "nud", "permanent", *neighbour[4:]],
        )

    def verdict(self, run: int, rank: int) -> dict[str, Any] | None:
        path = self.scratch / f"verdict-{run}-{rank}.json"
        return json.loads(path.read_text()) if path.exists() else None


def struck(hosts: Hosts, fault: Fault, folder: Path) -> dict[str, Any]:
    """One fault: what the survivors say of it."""
    raises = (fault.ranks[0], fault.step) if fault.kind == "raise" else (-1, -1)
    for _ in range(
        STARTS
    ):  # on a busy machine gloo may not connect in time; nothing has been broken yet
        run = hosts.start(fault.strategy, folder, raises=raises)
        if hosts.reached(run, fault.step - 1):
            break
        hosts.kill(run)
    else:
        raise RuntimeError(f"no run of {STARTS} came to step {fault.step}")
    number = {"sigterm": signal.SIGTERM, "stop": signal.SIGSTOP}.get(
        fault.kind.split()[0], signal.SIGKILL
    )
    if fault.kind.startswith("cut"):
        hosts.cut(*fault.ranks)
    elif fault.kind != "raise":
        for rank in fault.ranks:
            hosts.signal(run, rank, number)
    begun = time.monotonic()
    hung = hosts.ended(run, fault.survivors, TIMEOUT_S + DIAGNOSIS_S)
    seconds = time.monotonic() - begun
    hosts.kill(run)
    if fault.kind.startswith("cut"):
        hosts.cut(*fault.ranks, heal=True)
    verdicts = {rank: hosts.verdict(run, rank) for rank in fault.survivors if rank not in hung}
    judged = {rank: judged_by(fault, rank, verdict) for rank, verdict in verdicts.items()}
    return asdict(fault) | {
        "seconds": round(seconds, 1),
        "hung": hung,
        "judged": judged,
        "verdicts": verdicts,
    }


def judged_by(fault: Fault, rank: int, verdict: dict[str, Any] | None) -> str:
    """Whether a verdict is right, wrong (it blames somebody who is innocent) or blames nobody."""
    if verdict is None:
        return "none"
    named, words, guilty = set(verdict["ranks"]), verdict["words"], set(fault.ranks)
    if not named:  # a rank that is cut off from the store says that, and blames nobody
        cut_off = (
            fault.kind.startswith("cut")
            and {rank, 0} == guilty
            and "this rank cannot reach the store" in words
        )
        return "right" if cut_off else "none"
    if fault.kind.startswith("cut"):
        right = verdict["kind"] == LinkLostError.__name__ and (
            not verdict["one_way"] or tuple(verdict["ranks"]) == fault.ranks
        )
    else:
        right = verdict["kind"] == RankLostError.__name__
        right = right and (
            fault.kind != "raise" or f"raised ValueError: boom at step {fault.step}" in words
        )
    return "right" if right and named == guilty else "wrong"


def newest(folder: Path) -> int:
    """The newest step of which every rank has a checkpoint."""
    counts: dict[int, int] = {}
    for path in folder.glob("*-*.safetensors"):
        step = path.name.partition("-")[0]
        if step.isdecimal():
            counts[int(step)] = counts.get(int(step), 0) + 1
    return max((step for step, count in counts.items() if count == RANKS), default=0)


def finished(
    hosts: Hosts, strategy: str, folder: Path, resume: int
) -> list[dict[str, torch.Tensor]]:
    """Run to the end, from a checkpoint; the final weights by rank."""
    for _ in range(STARTS):
        run = hosts.start(strategy, folder, resume)
        late = hosts.ended(run, range(RANKS), 120)
        hosts.kill(run)
        if not late and not any(hosts.codes[run, rank] for rank in range(RANKS)):
            break
        if hosts.reached(run, resume):
            raise RuntimeError(
                f"run {run} did not end well: "
                f"{[hosts.verdict(run, rank) for rank in range(RANKS)]}, late {late}"
            )
    else:
        raise RuntimeError(f"no run of {STARTS} began")
    return [load_file(folder / f"final-{rank}.safetensors") for rank in range(RANKS)]


def same(one: list[dict[str, torch.Tensor]], other: list[dict[str, torch.Tensor]]) -> bool:
    return all(
        a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
        for a, b in zip(one, other, strict=True)
    )


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", help="faults by kind or number, such as 'cut,3'")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.serve:
        serve()
        return 0
    faults, wanted = drawn(asked.seed), set(asked.only.split(",")) if asked.only else None
    faults = [
        fault
        for fault in faults
        if wanted is None or fault.kind in wanted or str(fault.number) in wanted
    ]
    told: list[dict[str, Any]] = []
    whole: dict[str, list[dict[str, torch.Tensor]]] = {}
    begun = time.monotonic()
    with tempfile.TemporaryDirectory() as scratch, Lab(uniform(RANKS)) as lab:
        hosts = Hosts(lab, Path(scratch))
        for fault in faults:
            if fault.strategy not in whole:
                folder = Path(scratch, f"whole-{fault.strategy}")
                folder.mkdir()
                whole[fault.strategy] = finished(hosts, fault.strategy, folder, 0)
            folder = Path(scratch, f"fault-{fault.number}")
            folder.mkdir()
            record = struck(hosts, fault, folder)
            record["resumed_at"] = newest(folder)
            record["same"] = same(
                finished(hosts, fault.strategy, folder, record["resumed_at"]), whole[fault.strategy]
            )
            told.append(record)
            print(
                (
                    f"{fault.number:2} {fault.kind:13} {fault.strategy:6} ranks {fault.ranks} "
                    f"{record['seconds']:5.1f} s"
                ),
                end="  ",
            )
            print(
                (
                    f"{' '.join(record['judged'].values())}  hung {record['hung']}  same "
                    f"{record['same']}"
                ),
                flush=True,
            )
            for rank, how in record["judged"].items():
                if how != "right":
                    print(f"   rank {rank}, {how}: {record['verdicts'][rank]}", flush=True)
    return report(asked, told, time.monotonic() - begun)


def report(asked: argparse.Namespace, told: list[dict[str, Any]], seconds: float) -> int:
    verdicts = [how for record in told for how in record["judged"].values()]
    counts = {how: verdicts.count(how) for how in ("right", "wrong", "none")}
    hangs, lost = (
        sum(len(record["hung"]) for record in told),
        sum(not record["same"] for record in told),
    )
    figures = {
        "faults": len(told),
        "verdicts": len(verdicts),
        **counts,
        "hangs": hangs,
        "runs with lost updates": lost,
    }
    print(json.dumps(figures), f"{seconds:.0f} s")
    if asked.json:
        whole = {
            "environment": environment(),
            "seed": asked.seed,
            "seconds": round(seconds),
            "figures": figures,
            "faults": told,
        }
        asked.json.write_text(json.dumps(whole, indent=1) + "\n")
    met = (
        not hangs and not lost and not counts["wrong"] and counts["right"] >= TARGET * len(verdicts)
    )
    if not met:
        print(
            f"missed: no hang, no lost update, no wrong blame, {TARGET:.0%} of verdicts right",
            file=sys.stderr,
        )
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
