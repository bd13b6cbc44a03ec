"""Freeze what later versions of Thinwire must still read; entries that exist are never changed.

    python scripts/freeze.py defaults    the first released default of every setting

The tests in `tests/frozen/` read the files for ever after. A setting, a codec or a strategy that is
new gets an entry by a run of this script; to change an old entry is to break saved state.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import typing
from pathlib import Path
from typing import Any

from thinwire import how, on, what, when
from thinwire.registry import Member, members
from thinwire.strategy.fingerprint import as_plain, first_default

FROZEN = Path(__file__).parents[1] / "tests" / "frozen"
DEFAULTS = FROZEN / "defaults.json"
KINDS = ("when", "what", "how", "on", "outer")
REQUIRED = "required"


def defaults() -> dict[str, dict[str, Any]]:
    """The first released default of every setting, by "kind name" and setting."""
    for package in (how, on, what, when):
        for name in package.__all__:
            getattr(package, name)  # they are imported when they are asked for
    classes = {
        f"{kind} {name}": cls
        for kind in KINDS
        for name, cls in members(kind).items()
        if cls.__module__.startswith("thinwire.")
    }
    return {name: defaults_of(cls) for name, cls in sorted(classes.items())}


def defaults_of(cls: type[Member]) -> dict[str, Any]:
    """The first released default of every setting of a class, as a table holds it."""
    hints = typing.get_type_hints(cls)
    found = {field: first_default(field) for field in dataclasses.fields(cls)}  # type: ignore[arg-type]  # components are dataclasses
    return {
        field.name: {REQUIRED: True}
        if default is dataclasses.MISSING
        else as_plain(default, hints[field.name])
        for field, default in found.items()
    }


def merge(path: Path, made: dict[str, Any]) -> list[str]:
    """Add entries that the file lacks.

    Returns:
        The names of entries that the file holds with another value: they stay as they are.
    """
    held = json.loads(path.read_text()) if path.exists() else {}
    refused = []
    for name, value in made.items():
        if isinstance(value, dict) and isinstance(held.get(name), dict):
            refused += [
                f"{name}.{key}" for key in value if held[name].get(key, value[key]) != value[key]
            ]
            held[name] = value | held[name]
        elif held.setdefault(name, value) != value:
            refused.append(name)
    path.write_text(json.dumps(held, indent=1, sort_keys=True) + "\n")
    return refused


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("what", choices=["defaults"])
    parser.parse_args()
    refused = merge(DEFAULTS, defaults())
    if refused:
        sys.exit(f"these are frozen with other values, and stay: {', '.join(refused)}")


if __name__ == "__main__":
    main()
