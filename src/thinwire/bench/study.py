"""Measure contestants × links × seeds into a file of records that grows, so that a long study goes
on where it stopped.

1. Curves: the loss of every contestant and seed, once, on a network without limits: it does not
   depend on the link.
2. Times: steps of a larger model in each link's lab, contestants in turn, all links in several
   rounds.
3. Proof: one contestant trained whole in one link's lab. Its losses must be those of its curve, bit
   for bit, and the time that it took to a loss is held against the steps that its curve needed ×
   the step time measured there.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from thinwire.bench.contestants import SLOW, Contestant, chosen
from thinwire.bench.environments import python_for
from thinwire.bench.job import Job
from thinwire.bench.measured import FIGURES, parameters
from thinwire.bench.networks import NamedNetwork, no_limits
from thinwire.bench.records import RECORDS, environment, finite, no_number, read, write
from thinwire.bench.running import ran
from thinwire.bench.studies import Study
from thinwire.errors import BenchError, LabError
from thinwire.lab import Lab
from thinwire.strategy import Strategy

PARTS = ("curves", "times", "proof")
SAME = 2e-3  # of the last loss: what another order of float32 sums may change over a whole run


class Bench:
    """A study at work in a folder.

    Args:
        study: what to measure.
        folder: where records are kept.
        environments: where rivals' environments and the text are, for all benches.
        note: called with a line for each record as it comes.
        retry: measure again what failed before.
    """

    def __init__(
        self,
        study: Study,
        folder: Path,
        environments: Path,
        note: Callable[[str], None],
        retry: bool = False,
    ) -> None:
        self.study, self.folder, self.environments, self.note = study, folder, environments, note
        folder.mkdir(parents=True, exist_ok=True)
        self.records = read(folder / RECORDS)
        write(folder / RECORDS, self.records)  # without what was cut off
        self._done = {
            each["key"]
            for each in self.records
            if "key" in each and not (retry and each.get("error"))
        }
        self._here: str | None = None  # the environment record of what is measured now
        self._pythons: dict[str, Path | str] = {}
        self.train, self.held = bundled(environments)

    def run(self, command: str, parts: Sequence[str] = PARTS) -> list[dict[str, Any]]:
        """Measure all of these parts that is not there yet; every record."""
        here = {"kind": "environment", **environment(), "command": command}
        last: dict[str, Any] = next(
            (each for each in reversed(self.records) if each["kind"] == "environment"), {}
        )
        if "id" not in last or {**here, "date": last["date"], "id": last["id"]} != last:
            here["date"] = time.strftime("%Y-%m-%d")
            last = here | {"id": hashlib.sha256(json.dumps(here).encode()).hexdigest()[:8]}
            self._keep(last)
        self._here = last["id"]
        for part in parts:
            {"curves": self.curves, "times": self.times, "proof": self.proof}[part]()
        return self.records

    @property
    def curve_parameters(self) -> int:
        """Return the parameters of the model whose losses are measured."""
        return parameters(
            self.study.job(self.study.contestants[0], 0, self.study.curve, self.train, self.held)
        )

    def curves(self) -> None:
        """Losses, once for each contestant and seed."""
        study = self.study
        with no_limits(study.world).lab() as lab:
            for seed in range(study.seeds):
                for contestant in study.contestants:
                    if seed and contestant.same_as and self._shared(contestant, seed):
                        continue
                    job = study.job(contestant, seed, study.curve, self.train, self.held)
                    self._measure("curve", contestant, job, lab, seed=seed)

    def _shared(self, contestant: Contestant, seed: int) -> bool:
        """Take the curve of the contestant with the same maths, if the first seed agrees."""
        # Same maths means the same losses, but for rounding: the first seed proves it, the others
        # are taken.
        own, theirs = self._curve(contestant.name, 0), self._curve(contestant.same_as, 0)
        source = self._curve(contestant.same_as, seed)
        if own is None or theirs is None or source is None:
            return False
        ends = [record["validation"][-1][1] for record in (own, theirs)]
        if abs(ends[0] / ends[1] - 1) > SAME:
            return False
        key = f"{own['key']}-{seed}"
        if key not in self._done:
            taken = {
                name: source.get(name) for name in ("seed", "validation", "job", "environment")
            }
            self._keep({**own, **taken, "key": key, "shared": contestant.same_as})
        return True

    def _curve(self, name: str | None, seed: int) -> dict[str, Any] | None:
        curves = [
            each
            for each in self.records
            if each["kind"] == "curve" and each["name"] == name and each["seed"] == seed
        ]
        return next((each for each in curves if not each["error"]), None)

    def times(self) -> None:
        """Measure step times on every link, contestants in turn.

        Then all links again, so that a round comes long after the one before.
        """
        study = self.study
        for number in range(study.rounds):
            for network in study.networks:
                with network.lab() as lab:
                    for contestant in study.contestants:
                        self._time(
                            contestant,
                            network,
                            lab,
                            number,
                            {**study.timing, "warm": study.warm(contestant)},
                        )

    def proof(self) -> None:
        """Run one cell whole, and measure its step time in a run of its own."""
        study = self.study
        name, network = study.proof
        [contestant] = chosen([name], study.contestants)
        step_fields = {**study.curve, "warm": study.timed, "few": 3, "validate_every": 0}
        contestant = replace(contestant, timed={}, slow={})  # as it is run whole
        with network.lab() as lab:
            self._time(
                contestant, network, lab, 0, step_fields, kind="small", least=4 * study.timed
            )  # its steps are short
            self.whole(contestant, network, lab)

    def whole(self, contestant: Contestant, network: NamedNetwork, lab: Lab) -> None:
        """Measure a curve of the first seed, on a link."""
        job = self.study.job(contestant, 0, self.study.curve, self.train, self.held)
        self._measure("whole", contestant, job, lab, seed=0, link=network.record())

    def _time(
        self,
        contestant: Contestant,
        network: NamedNetwork,
        lab: Lab,
        number: int,
        fields: Mapping[str, Any],
        kind: str = "time",
        least: int = 0,
    ) -> None:
        # Some settings differ for timed steps, and for slow links.
        settings = (
            contestant.settings
            | contestant.timed
            | (contestant.slow if network.bits_per_s and network.bits_per_s < SLOW else {})
        )
        contestant = replace(contestant, settings=settings)
        # Whole periods, so that the mean step holds its part of every sending.
        periods = -(-(least or self.study.timed) // contestant.period)
        job = self.study.job(
            contestant,
            0,
            {**fields, "stop": fields["warm"] + periods * contestant.period},
            self.train,
            self.held,
        )
        self._measure(kind, contestant, job, lab, link=network.record(), round=number)

    def _measure(self, kind: str, contestant: Contestant, job: Job, lab: Lab, **more: Any) -> None:
        record = {
            "kind": kind,
            "name": contestant.name,
            "contestant": contestant.module,
            "settings": contestant.settings,
            **more,
        }
        # 1. Measured already, with the same settings and job: nothing to do.
        record |= {"world": self.study.world, "same_as": contestant.same_as}
        key = _key(record, job)
        if key in self._done:
            return
        record |= {
            "job": _fields(job),
            "libraries": _libraries(contestant),
            "environment": self._here,
        }
        # 2. Measure. A failed lab ends the study; a failed contestant is a record with its error.
        begun = time.monotonic()
        try:
            ranks, line = ran(lab, job, self._python(contestant))
            record |= {
                **FIGURES[kind](job, ranks),
                "max_late_ms": line.max_late_ms if line else None,
            }
            record["error"] = no_number(record.get("validation", ())) or None
        except LabError as error:
            raise LabError(
                f"the lab failed while {contestant.name} ran: {error}; the same command goes on "
                "from here"
            ) from error
        except BenchError as error:
            record["error"] = str(error)
        # 3. Write the record at once: a study that stops goes on after it.
        self._keep({"key": key, **record})
        where = " ".join(
            str(more[name]["name"] if name == "link" else f"{name} {more[name]}") for name in more
        )
        self.note(
            f"{kind:<6} {contestant.name:<38} {where:<28} {_words(record)}  "
            f"({time.monotonic() - begun:.0f} s)"
        )

    def _python(self, contestant: Contestant) -> Path:
        """Return the interpreter for a contestant, and raise where it cannot be installed."""
        # Built once a study; a contestant that cannot be installed fails at each use.
        if contestant.module not in self._pythons:
            try:
                module = _module(contestant.module)
                interpreter: Path | str = python_for(
                    module.REQUIRES, self.environments, getattr(module, "BUILD_ENV", None)
                )
            except (BenchError, OSError) as error:
                interpreter = f"cannot be installed: {error}"
            self._pythons[contestant.module] = interpreter
        python = self._pythons[contestant.module]
        if isinstance(python, str):
            raise BenchError(python)
        return python

    def _keep(self, record: dict[str, Any]) -> None:
        """Add a record to the file; it replaces the failure that was tried again."""
        path, record, key = self.folder / RECORDS, finite(record), record.get("key", "")
        if any(each.get("key") == key for each in self.records):
            self.records, there = (
                [each for each in some if each.get("key") != key]
                for some in (self.records, read(path))
            )
            write(path, there)
        self.records.append(record)
        self._done.add(key)
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record, allow_nan=False) + "\n")


def _module(name: str) -> Any:
    return importlib.import_module(
        "thinwire.bench.ours" if name == "thinwire" else f"thinwire.bench.rivals.{name}"
    )


def _libraries(contestant: Contestant) -> list[str]:
    """Return a rival's pins, each as `name==version`."""
    return [
        word
        for line in _module(contestant.module).REQUIRES
        for word in line.split()
        if "==" in word
    ]


def _fields(job: Job) -> dict[str, Any]:
    """Return a job's fields for its record: all but contestant, settings and file paths."""
    return {
        key: value
        for key, value in asdict(job).items()
        if key not in ("contestant", "settings", "train", "held")
    }


def _key(record: dict[str, Any], job: Job) -> str:
    """Return the key of a measurement: a hash of all that was requested.

    File paths, settings at their defaults and the matmul precision are not part of it.
    """
    settings = dict(record["settings"])
    if "strategy" in settings:
        settings["strategy"] = Strategy.from_toml(settings["strategy"]).short()
    fields = asdict(job) | {"settings": settings, "train": "", "held": ""}
    del fields["matmul"]
    identity = [record | {"settings": settings}, fields]
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]


def _words(record: Mapping[str, Any]) -> str:
    if record["error"]:
        return f"failed: {record['error'][:120]}"
    if "step_s" in record:
        mean, megabytes = statistics.mean(record["step_s"]), record["kernel_bytes"] / 1e6
        return f"{mean:.3f} s a step, {megabytes:.3f} MB"
    return f"{record['validation'][-1][1]:.4f} nats"


def bundled(folder: Path) -> tuple[str, str]:
    """Write the bundled text as bytes, for processes that may not have thinwire's packages."""
    from thinwire.data.corpus.english import english

    folder.mkdir(parents=True, exist_ok=True)
    places = [folder / "train.npy", folder / "held.npy"]
    for path, text in zip(places, english(), strict=True):
        if not path.exists():
            partial = path.with_suffix(f".{os.getpid()}.npy")
            np.save(partial, np.frombuffer(text, np.uint8))
            partial.replace(path)
    return str(places[0]), str(places[1])
