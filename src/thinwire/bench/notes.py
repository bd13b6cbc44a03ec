"""Write the texts of a bench's page around its figures.

They are what was measured, where and how, what failed, and how to do it again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from thinwire.bench.comparison import Comparison
from thinwire.bench.looks import escape
from thinwire.bench.page import Cell, Head, Row, fixed, so_many, table
from thinwire.bench.results import Bench


def opening(bench: Bench) -> str:
    """Write what was measured, and where."""
    # 1. Facts that all records share; where they differ, each value.
    curves_of = [
        record for (_, link), some in bench.records.items() if link is None for record in some
    ]
    facts = [
        f"{so_many(len(bench.contestants), 'contestant')} on {so_many(len(bench.links), 'link')}"
    ]
    for key, words in (
        ("parameters", "a model of {} parameters"),
        ("tokens_per_step", "{} tokens a step"),
        ("steps", "up to {} steps"),
    ):
        if values := sorted({record[key] for record in curves_of if record.get(key) is not None}):
            facts.append(words.format(" or ".join(f"{value:,}" for value in values)))
    if worlds := sorted({world for world, _ in bench.setups.values() if world is not None}):
        facts.append(f"{' or '.join(map(str, worlds))} ranks")
    # 2. The machine. 3. How times come about.
    where = ""
    for here in bench.environments[:1]:
        shown = {key: escape(here[key]) for key in here if here[key] is not None}
        named = {
            "thinwire": "thinwire {}",
            "torch": "torch {}",
            "python": "Python {}",
            "cpu": "{}",
            "cores": "{} cores",
            "kernel": "Linux {}",
        }
        where = ", ".join(words.format(shown[key]) for key, words in named.items() if key in shown)
        where = f" Measured {shown.get('date', '')} with {where}."
    how = ""
    if bench.targets:
        how = (
            " The time to a loss is the steps that a contestant's mean curve needs × its mean "
            "step on the link; "
            f"target losses are those that {escape(bench.baseline)} has reached at some share of "
            "its steps."
        )
    return f'<p class="lead">{escape(", ".join(facts))}.{where}{how}</p>'


def cautions(bench: Bench) -> str:
    """Write the warnings that a reader of the figures needs."""
    out = []
    if bench.baseline is None:
        out.append(
            "None of the contestants is a dense DDP baseline: there is no target loss, no gap and "
            "no speed-up."
        )
    elif bench.baseline not in bench.curves:
        out.append(
            f"{bench.baseline} has no curve without errors: there is no target loss, no gap and "
            "no speed-up."
        )
    curves_of = [
        record for (_, link), some in bench.records.items() if link is None for record in some
    ]
    # Steps to a loss and seconds a step may come from models of two sizes.
    models: set[int] = {
        record["parameters"] for record in curves_of if record.get("parameters") is not None
    }
    timed = {parameters for _, parameters in bench.setups.values() if parameters is not None}
    if models and timed - models:
        words = [
            " and ".join(f"{number:,}" for number in sorted(numbers)) for numbers in (models, timed)
        ]
        out.append(
            f"Steps to a loss are those of a model of {words[0]} parameters; seconds and bytes "
            f"those of {words[1]} parameters."
        )
    if len({_json(_machine(here)) for here in bench.environments}) > 1:
        out.append("The records come from several environments; see the end of the page.")
    if not bench.environments:
        out.append("The records do not say where they were measured.")
    return "".join(f'<p class="warning">{escape(each)}</p>' for each in out)


def measurement_notes(bench: Bench, page: Comparison) -> str:
    """Write how times and bytes were counted, and the links."""
    heads = [
        Head("contestant", number=False),
        Head("link", number=False),
        Head("rounds"),
        Head("timed steps"),
        Head("sent", "kB, by a rank and step"),
        Head(
            "kernel over meter", "×", "Bytes on the interface over those that the library counted"
        ),
        Head("greatest lateness", "ms", "Of the emulated link, behind its own schedule"),
    ]
    rows = [
        Row(
            [
                Cell.words(row["name"]),
                Cell.words(row["link"]),
                Cell.number(row["rounds"], str(row["rounds"])),
                Cell.number(row["timed_steps"], f"{row['timed_steps']:,}"),
                Cell.number(None if row["bytes_per_step"] is None else row["bytes_per_step"] / 1e3),
                fixed(row["kernel_over_meter"], 3),
                Cell.number(row["max_late_ms"]),
            ],
            page.attributes(row["link"]),
        )
        for row in page.rows
        if row["timed_steps"]
    ]
    links = [
        Head("link", number=False),
        Head("rate", "Mb/s"),
        Head("round trip", "ms"),
        Head("loss", "%"),
        Head("congestion", number=False),
    ]
    wires = [
        Row(
            [
                Cell.words(name),
                Cell.number(None if link.get("rate") is None else link["rate"] / 1e6),
                Cell.number(None if link.get("rtt") is None else link["rtt"] * 1e3),
                Cell.number(None if link.get("loss") is None else link["loss"] * 100),
                Cell.words(link.get("congestion") or "–"),
            ]
        )
        for name, link in bench.links.items()
    ]
    return (table("Links", links, wires) if wires else "") + (
        table("How it was counted", heads, rows) if rows else ""
    )


def failures(bench: Bench) -> str:
    """Write what failed, of each contestant."""
    items = []
    for (name, link), errors in bench.errors.items():
        where = "its curve" if link is None else link
        items += [
            (
                f"<li><strong>{escape(name)}</strong>, {escape(where)}: "
                f"<code>{escape(error)}</code></li>"
            )
            for error in errors
        ]
    items += [
        (
            f"<li><strong>{escape(whole['name'])}</strong>, whole run: "
            f"<code>{escape(whole['error'])}</code></li>"
        )
        for whole in bench.wholes
        if whole.get("error")
    ]
    return f'<ul class="plain name">{"".join(items)}</ul>' if items else ""


FIELDS = (
    "contestant",
    "settings",
    "commands",
    "libraries",
    "job of curves",
    "job of times",
    "curves",
    "times",
)
CURVE, TIME = (
    ("seed", "steps", "tokens_per_step", "parameters"),
    ("link", "world", "parameters", "round"),
)


def reproduce(bench: Bench) -> str:
    """Write the commands, and of each contestant every setting that it was run with."""
    commands = dict.fromkeys(here["command"] for here in bench.environments if here.get("command"))
    out = [f"<pre><code>{escape(command)}</code></pre>" for command in commands]
    out += dict.fromkeys(
        details("environment", {key: here[key] for key in here if key != "kind"})
        for here in bench.environments
    )
    # Records of a contestant with the same settings are shown once, with all their seeds and links.
    typed = {here["id"]: here.get("command") for here in bench.environments if here.get("id")}
    for name, contestant in bench.contestants.items():
        sets: dict[str, dict[str, Any]] = {}
        for (whose, link), records in bench.records.items():
            for record in records if whose == name else ():
                settings, environment = record.get("settings") or {}, record.get("environment")
                unfolded = sets.setdefault(
                    _json(settings), {"contestant": contestant, "settings": settings}
                )
                kind, keys = ("curves", CURVE) if link is None else ("times", TIME)
                unfolded.setdefault(kind, []).append(
                    {key: record.get(key) for key in keys}
                    | ({"environment": environment} if environment else {})
                )
                job = {
                    key: value for key, value in (record.get("job") or {}).items() if key != "seed"
                }
                for key, value in (
                    (f"job of {kind}", job),
                    ("libraries", record.get("libraries")),
                    ("commands", typed.get(environment)),
                ):
                    if value and value not in unfolded.get(key, []):
                        unfolded.setdefault(key, []).append(value)
        out += [
            details(name, {key: unfolded[key] for key in FIELDS if key in unfolded})
            for unfolded in sets.values()
        ]
    return "".join(out)


def _machine(here: Mapping[str, Any]) -> dict[str, Any]:
    """Return what figures depend on of an environment."""
    return {key: here[key] for key in here if key not in ("command", "date", "id")}


def details(name: str, values: Mapping[str, Any], toml: str = "") -> str:
    """Write values that a click unfolds."""
    code = f"<pre><code>{escape(toml)}</code></pre>" if toml else ""
    return (
        f"<details><summary>{escape(name)}</summary>{code}"
        f"<pre><code>{escape(_json(values))}</code></pre></details>"
    )


def _json(value: Any) -> str:
    return json.dumps(value, indent=1, ensure_ascii=False, default=str)
