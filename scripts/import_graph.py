"""Print the import graph of thinwire: packages by floor, imports that go up, and circles.

    python scripts/import_graph.py            # a line a package, then what is wrong
    python scripts/import_graph.py --modules  # a line a module, with what it imports

The sources are parsed, not run, so an import inside a function or under TYPE_CHECKING counts like
any other. The exit status is 1 where something is wrong. `tests/test_floors.py` holds the same
rules.
"""

from __future__ import annotations

import argparse
import ast
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

SOURCE = Path(__file__).resolve().parents[1] / "src" / "thinwire"

# Top-level module or package -> floor. Imports only go down, or sideways where STRANGERS allow it.
FLOORS: dict[str, int] = {
    **dict.fromkeys(("errors", "version", "text", "env", "net", "kernels"), 0),
    "core": 1,
    **dict.fromkeys(("when", "what", "how", "on"), 2),
    **dict.fromkeys(("strategy", "drive", "testing"), 3),
    **dict.fromkeys(("engine", "quorum", "models", "optim", "data", "lab", "launch"), 4),
    "planner": 5,
    **dict.fromkeys(("train", "bench"), 6),
    "adapters": 7,
    **dict.fromkeys(("__init__", "recipes"), 8),
    **dict.fromkeys(("cli", "__main__"), 9),
}
# Packages that never import one another.
STRANGERS = (frozenset({"when", "what", "how", "on"}), frozenset({"train", "bench"}))


def imports(source: str, package: str) -> Iterator[tuple[int, str]]:
    """Yield line and absolute dotted name of all that `source`, a module of `package`, imports."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")
            above = parents[: len(parents) - node.level + 1] if node.level else []
            base = ".".join([*above, *filter(None, [node.module])])
            yield from ((node.lineno, f"{base}.{alias.name}") for alias in node.names)


def room_of(name: str) -> str | None:
    """Return the top-level module that a dotted name leads into; `None` outside thinwire."""
    head, *rest = name.split(".")
    if head != "thinwire":
        return None
    # `from thinwire import attach` comes in through the front door
    return rest[0] if rest and rest[0] in FLOORS else "__init__"


def trespasses(source: str, room: str, package: str) -> list[str]:
    """Return each import of `source` that goes up, or from a package into a stranger."""
    problems = []
    for line, name in imports(source, package):
        target = room_of(name)
        if target is None or target == room:
            continue
        if FLOORS[target] > FLOORS[room]:
            problems.append(
                f"line {line}: {room} (floor {FLOORS[room]}) imports {name} "
                f"(floor {FLOORS[target]}): imports only go down"
            )
        for strangers in STRANGERS:
            if room in strangers and target in strangers:
                problems.append(
                    f"line {line}: {room} imports {name}: {', '.join(sorted(strangers))} never "
                    "import one another; meet in a package below"
                )
    return problems


def modules(source: Path = SOURCE) -> dict[str, Path]:
    """Return {dotted name: file} of all modules."""
    named = {}
    for path in sorted(source.rglob("*.py")):
        parts = [source.name, *path.relative_to(source).with_suffix("").parts]
        named[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return named


def graph(named: Mapping[str, Path]) -> dict[str, set[str]]:
    """Return {module: the modules that it imports}; a name leads into its longest known prefix."""
    edges: dict[str, set[str]] = {name: set() for name in named}
    for name, path in named.items():
        package = name if path.name == "__init__.py" else name.rpartition(".")[0]
        for _, dotted in imports(path.read_text(encoding="utf-8"), package):
            target = dotted
            while target and target not in named:
                target = target.rpartition(".")[0]
            if target and target != name:
                edges[name].add(target)
    return edges


def circles(edges: Mapping[str, set[str]]) -> list[list[str]]:
    """Return the strongly connected components of more than one module (Tarjan 1972)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(module: str) -> None:
        index[module] = low[module] = len(index)
        stack.append(module)
        for target in sorted(edges[module]):
            if target not in index:
                visit(target)
                low[module] = min(low[module], low[target])
            elif target in stack:
                low[module] = min(low[module], index[target])
        if low[module] == index[module]:
            component = stack[stack.index(module) :]
            del stack[stack.index(module) :]
            if len(component) > 1:
                found.append(sorted(component))

    for module in edges:
        if module not in index:
            visit(module)
    return found


def arrows_up(named: Mapping[str, Path]) -> list[str]:
    """Return all imports that go up or into a stranger, with their file."""
    problems = []
    for name, path in named.items():
        parts = name.split(".")
        room = parts[1] if len(parts) > 1 else "__init__"
        package = name if path.name == "__init__.py" else name.rpartition(".")[0]
        found = trespasses(path.read_text(encoding="utf-8"), room, package)
        problems += [f"{path.relative_to(SOURCE).as_posix()} {each}" for each in found]
    return problems


def main() -> int:
    """Print the graph; return 1 where an import goes up or a circle exists."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--modules", action="store_true", help="a line a module")
    options = parser.parse_args()
    named = modules()
    edges = graph(named)
    if options.modules:
        for name, targets in edges.items():
            print(f"{name}: {', '.join(sorted(targets)) or '–'}")
    rooms: dict[str, set[str]] = {}
    for name, targets in edges.items():
        room = room_of(name) or ""
        rooms.setdefault(room, set()).update(filter(None, map(room_of, targets)))
    for room in sorted(rooms, key=lambda each: (-FLOORS[each], each)):
        below = sorted(rooms[room] - {room}, key=lambda each: (-FLOORS[each], each))
        print(f"{FLOORS[room]}  {room:10} {' '.join(below)}")
    up, rings = arrows_up(named), circles(edges)
    print(f"{len(named)} modules, {sum(map(len, edges.values()))} imports")
    print(f"{len(up)} arrows up or sideways, {len(rings)} circles")
    for problem in up:
        print(problem)
    for ring in rings:
        print("circle:", ", ".join(ring))
    return 1 if up or rings else 0


if __name__ == "__main__":
    sys.exit(main())
