"""`thinwire recipes`: list the named strategies, with their parts, bytes and memory.

Nothing here is typed from a paper: a recipe's slots are read off its value, its settings off its
signature, its source off its docstring, and its bytes are the closed form of its route and codec,
on the very buckets that `attach` would make of the given model or shape. What it keeps in memory is
counted on the state that it would make of them, without storage. In each period every bucket flies
once, so bytes a step are those of all flights over the period; a warm-up is left out.
"""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import re
import shutil
import textwrap
import typing
from collections.abc import Callable, Sequence
from dataclasses import MISSING, asdict, fields
from typing import Any, Literal

from thinwire.cli._speed import asked_gbits, rate, speed_words
from thinwire.errors import ConfigError
from thinwire.planner.ledger import sent
from thinwire.planner.memory import kept_bytes, on_host
from thinwire.planner.shape import Named, Shape
from thinwire.text.output import CommandOutput
from thinwire.train.values import count

ABOUT = """\
List the named strategies: their parts, their sources, and what they send.

    thinwire recipes                            all recipes, in a table
    thinwire recipes powersgd                   one recipe, with its settings and its TOML
    thinwire recipes diloco,period=60           a recipe with settings, as --strategy takes it
    thinwire recipes --parameters 1000000000    bytes and memory for a model of about that size
    thinwire recipes diloco --model gpt2-nano   the same for a model, as --model of thinwire train
"""
WIDTH, LAYERS, WORLD = 768, 12, 8
MOST_RANKS = (
    256  # the bytes of every rank are counted, and a route cuts each bucket for every one of them
)
SOURCE = re.compile(
    r"\(([^()]*\b(?:19|20)\d\d\b[^()]*?)\.?\)"
)  # (Vogels et al. 2019, arXiv:1905.13727.)
EXAMPLES = {
    "start": 100,
    "until": 1000,
    "gbits": 1.0,
}  # of what has no default; any other is half the ranks, where that divides
WIDEST = 120


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `thinwire recipes`."""
    parser.add_argument(
        "recipe",
        nargs="?",
        metavar="NAME[,key=value…]",
        help="one recipe, or the path of a .toml file; default: all recipes",
    )
    shape = parser.add_argument_group(
        "model to estimate", "a transformer's matrices: 12 width² parameters a layer"
    )
    shape.add_argument(
        "--model",
        metavar="NAME",
        help="a preset with its settings, a saved folder, or hf:NAME: only its shapes are read",
    )
    shape.add_argument(
        "--parameters",
        type=count,
        metavar="N",
        help="about so many parameters, in layers as wide as 64 times their number",
    )
    shape.add_argument("--width", type=count, metavar="N", help=f"default {WIDTH}")
    shape.add_argument("--layers", type=count, metavar="N", help=f"default {LAYERS}")
    shape.add_argument(
        "--world", type=count, metavar="K", default=WORLD, help=f"ranks; default {WORLD}"
    )


def run(options: argparse.Namespace, output: CommandOutput) -> int:
    """Print all recipes, or one."""
    shape, world = _shape(options), options.world
    sizes = (
        {"width": shape.width, "layers": shape.layers}
        if isinstance(shape, Shape)
        else {"model": shape.name}
    )
    reference = {**sizes, "parameters": shape.parameters, "world": world}
    size = f"{shape.text} on {world} ranks"
    wide = min(shutil.get_terminal_size().columns, WIDEST)
    if options.recipe is not None:
        facts = one(options.recipe, shape, world)
        output.result(facts | {"reference": reference}, _page(facts, size, wide))
    else:
        from thinwire import recipes

        rows = [one(name, shape, world) for name in recipes.names()]
        output.result({"reference": reference, "recipes": rows}, _table(rows, size, wide))
    return 0


def one(spec: str, shape: Shape | Named, world: int) -> dict[str, Any]:
    """Return everything about one recipe, or about a strategy in a file, as JSON takes it.

    Raises:
        ThinwireError: no such recipe, setting or file, or a strategy that cannot serve such a model
            or world.
    """
    from thinwire import recipes
    from thinwire.planner.codecs import speed
    from thinwire.text.words import name_and_settings
    from thinwire.train.strategy_argument import strategy_from

    # 1. Settings that a recipe needs get example values, which the answer names.
    name = name_and_settings(spec)[0]
    maker = recipes.names().get(name)
    settings = _settings(maker) if maker is not None else []
    given = {piece.partition("=")[0].strip() for piece in name_and_settings(spec)[1]}
    examples = {
        key: EXAMPLES.get(key, _half(world))
        for key in (each["name"] for each in settings if each["required"])
        if key not in given
    }
    spec = ",".join([spec, *(f"{key}={value}" for key, value in examples.items())])
    # 2. The strategy in this world, and what it sends and keeps.
    strategy = strategy_from(spec)
    bound = dataclasses.replace(strategy, how=strategy.how.bind(world))
    sent_facts = sent(bound, shape, world)
    state_bytes = kept_bytes(bound, shape.module(), world)
    # 3. The recipe's docstring has the sentence about it and its source.
    doc = inspect.getdoc(maker) or ""
    source = SOURCE.search(doc)
    return {
        "recipe": name if maker is not None else None,
        "said": spec,
        "examples": examples,
        "about": doc.partition("\n")[0].split(" (")[0] if source else doc.partition("\n")[0],
        "doc": doc,
        "source": source[1] if source else None,
        "settings": settings,
        "slots": {slot: short(getattr(strategy, slot)) for slot in ("when", "what", "how", "on")},
        "strategy": repr(strategy),
        "toml": strategy.to_toml(),
        "bytes": {**asdict(sent_facts), "fewer": sent_facts.fewer},
        "speed": {**asdict(speed(strategy.what)), "gbits": asked_gbits(spec)},
        "memory": {
            "bytes": sum(state_bytes.values()),
            "a_parameter": sum(state_bytes.values()) / shape.parameters,
            "of": state_bytes,
            "host": on_host(strategy),
        },
    }


def short(value: Any) -> str:
    """Return a component as one would type it: without what is the default anyway.

    Example:
        >>> from thinwire.what import feedback, topk, uniform
        >>> short(feedback(topk(64, per=4096) >> uniform(2), 0.95))
        'feedback(topk(64, per=4096) >> uniform(2), decay=0.95)'
    """
    from thinwire.core.component import Component
    from thinwire.what import chain

    if isinstance(value, tuple):
        return f"({', '.join(map(short, value))})"
    if not isinstance(value, Component):
        return repr(value)
    if isinstance(value, chain):
        return f"{short(value.first)} >> {short(value.second)}"
    # Settings at their default are left out; the first one goes without its name.
    arguments = []
    for index, each in enumerate(fields(value)):  # type: ignore[arg-type]  # components are dataclasses
        own = getattr(value, each.name)
        default = each.default_factory() if each.default_factory is not MISSING else each.default
        shown = isinstance(own, int | float | Component) and index == 0
        if own != default or shown:
            arguments.append(
                short(own) if each.default is MISSING or index == 0 else f"{each.name}={short(own)}"
            )
    return f"{type(value).__name__}({', '.join(arguments)})"


def _shape(options: argparse.Namespace) -> Shape | Named:
    if not 2 <= options.world <= MOST_RANKS:
        raise ConfigError(
            f"--world {options.world}: bytes are counted for 2 to {MOST_RANKS} ranks; one rank "
            "has nobody to talk to"
        )
    # A model by name has sizes of its own; else they come from the flags.
    if options.model is not None:
        if options.parameters or options.width or options.layers:
            raise ConfigError(
                "--model has sizes of its own: give it, or --parameters, --width and --layers"
            )
        from thinwire.models.build import meta_model

        return Named(options.model, meta_model(options.model))
    if options.parameters is None:
        shape = Shape(options.width or WIDTH, options.layers or LAYERS)
    elif options.width or options.layers:
        raise ConfigError("--parameters chooses --width and --layers itself: give it, or them")
    else:
        shape = Shape.about(options.parameters)
    if shape.parameters > 10**13:
        raise ConfigError(
            f"a model of {shape.parameters:,} parameters is beyond what is counted here; take at "
            "most 10,000,000,000,000"
        )
    return shape


def _settings(maker: Callable[..., Any]) -> list[dict[str, Any]]:
    types = typing.get_type_hints(maker)
    return [
        {
            "name": key,
            "type": _type_name(types[key]),
            "default": None if parameter.default is inspect.Parameter.empty else parameter.default,
            "required": parameter.default is inspect.Parameter.empty,
        }
        for key, parameter in inspect.signature(maker).parameters.items()
    ]


def _type_name(hint: Any) -> str:
    """Return what goes there, as one word or several; that it may be left out says its default."""
    if typing.get_origin(hint) is Literal:
        return "|".join(map(str, typing.get_args(hint)))
    some = [each for each in typing.get_args(hint) if each is not type(None)] or [hint]
    return "|".join(each.__name__ for each in some)


def _half(world: int) -> int:
    return world // 2 if world % 2 == 0 else 1


def _bytes_words(facts: dict[str, Any]) -> tuple[str, str]:
    sent_bytes, fewer = facts["bytes"]["sent_bytes"], facts["bytes"]["fewer"]
    return (
        ("by data", "–")
        if sent_bytes is None
        else (f"{sent_bytes:.3g}", f"{fewer:,.{1 if fewer < 100 else 0}f}x")
    )


def _table(rows: Sequence[dict[str, Any]], size: str, wide: int) -> str:
    # Columns of figures, then slots and source, wrapped in the last column.
    first, second, third, fourth = max(len(row["recipe"]) for row in rows), 7, 7, 5
    indent = " " * (first + second + third + 2 * fourth + 10)
    lines = [
        (
            f"{'recipe':<{first}}  {'bytes':>{second}}  {'fewer':>{third}}  {'keeps':>{fourth}}  "
            f"{'Gb/s':>{fourth}}  "
            "when × what × how × on; source"
        ),
        "─" * wide,
    ]
    for row in rows:
        sent_bytes, fewer = _bytes_words(row)
        slots = textwrap.wrap(
            " × ".join(row["slots"].values()), wide - len(indent), break_long_words=False
        )
        source = textwrap.wrap(row["source"] or row["about"], wide - len(indent))
        keeps, pays = f"{row['memory']['a_parameter']:.1f}", rate(row["speed"]["pays_below_gbits"])
        lines.append(
            f"{row['recipe']:<{first}}  {sent_bytes:>{second}}  {fewer:>{third}}  "
            f"{keeps:>{fourth}}  {pays:>{fourth}}  {slots[0]}"
        )
        lines += [indent + more for more in (*slots[1:], *source)]
    # Notes under the table: units, examples, and what goes between nodes.
    facts = (
        "bytes: sent by a rank, a parameter and step, on average over ranks and steps, warm-up "
        "apart; fewer: than dense fp32 at every "
        "step; keeps: bytes of memory a rank and parameter beside parameters, gradients and the "
        "loop's optimiser; Gb/s: on a faster link the codec, on this machine, takes longer than "
        f"it saves. For {size}; --model, "
        f"--parameters, --width, --layers and --world choose others."
    )
    examples = "; ".join(
        f"{row['recipe']} with {_pairs(row['examples'])}" for row in rows if row["examples"]
    )
    inside = "; ".join(
        (
            f"{row['recipe']} sends {row['bytes']['between_bytes']:.3g} of its "
            f"{row['bytes']['sent_bytes']:.3g} between nodes"
        )
        for row in rows
        if row["bytes"]["between_bytes"] is not None
    )
    notes = [
        facts,
        f"Here {examples}." if examples else "",
        f"{inside}, the rest inside them." if inside else "",
    ]
    return "\n".join(
        [
            *lines,
            "─" * wide,
            *(line for note in notes if note for line in textwrap.wrap(note, wide)),
        ]
    )


def _page(facts: dict[str, Any], size: str, wide: int) -> str:
    lines = [facts["said"], "─" * wide]
    if facts["doc"]:
        lines += [facts["doc"], ""]
    for each in facts["settings"]:
        example = (
            f"; here {facts['examples'][each['name']]}" if each["name"] in facts["examples"] else ""
        )
        default = f"no default{example}" if each["required"] else f"default {each['default']}"
        lines.append(
            f"    {each['name']:<12}{each['type']:<8}{default}".replace(
                "default None", "by the other settings"
            )
        )
    sent_bytes, fewer = _bytes_words(facts)
    sent_facts = facts["bytes"]
    words = "the data decides what is sent"
    if sent_facts["sent_bytes"] is not None:
        times = (
            f"{fewer} fewer" if sent_facts["fewer"] >= 1 else f"{1 / sent_facts['fewer']:.1f}x more"
        )
        words = (
            f"{sent_bytes} a rank, parameter and step, {times} than dense fp32 "
            f"({sent_facts['dense_bytes']:.3g})"
        )
        if sent_facts["between_bytes"] is not None:
            words += f"; {sent_facts['between_bytes']:.3g} of it between nodes"
    period = (
        "at every step" if sent_facts["period"] == 1 else f"once in {sent_facts['period']:,} steps"
    )
    lines += [""] if facts["settings"] else []
    from thinwire.train.show import size as size_of

    memory = facts["memory"]
    parts = ", ".join(
        f"{name} {size_of(nbytes)}"
        for name, nbytes in memory["of"].items()
        if nbytes > memory["bytes"] / 1000
    )
    host = "; what the target keeps is in the host's memory" if memory["host"] else ""
    keeps = (
        f"{size_of(memory['bytes'])} a rank beside parameters, gradients and the loop's optimiser "
        f"({parts}){host}."
    )
    for name, text in (
        ("strategy", facts["strategy"]),
        ("bytes", f"{words}. For {size}; each bucket is sent {period}."),
        ("codec", speed_words(facts["speed"])),
        ("memory", keeps),
    ):
        lines += textwrap.wrap(
            text,
            wide,
            initial_indent=f"{name:<10}",
            subsequent_indent=" " * 10,
            break_long_words=False,
        )
    return "\n".join([*lines, "", "as TOML, for --strategy FILE.toml:", "", facts["toml"]])


def _pairs(values: dict[str, Any]) -> str:
    return ",".join(f"{key}={value}" for key, value in values.items())
