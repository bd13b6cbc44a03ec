"""Find the words that names, docstrings, comments, messages and docs must not use, and why.

    python scripts/glossary.py src/thinwire/how docs/how   # each line with such a word

Each word below once named several things, or a thing for which the field has a word of its own. A
reader then had to translate. tests/test_glossary.py runs this over the whole tree.
"""

from __future__ import annotations

import ast
import io
import re
import sys
import tokenize
from collections.abc import Iterable, Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "thinwire"

# A part of a name (`rows_told`, `Unsaid`) -> what to write for it.
NAME_PARTS = {
    **dict.fromkeys(
        ("told", "tell", "tells", "telling", "said", "say", "says", "saying"),
        "name what it holds: message, summary, sent, text",
    ),
    **dict.fromkeys(
        ("heard", "hear", "hears", "hearing", "spoken", "speak", "speaks", "news"),
        "name what it holds: received, replies, votes, covered",
    ),
    **dict.fromkeys(("seat", "seats"), "RankContext, ctx"),
    **dict.fromkeys(("unsaid",), "EncodedWithResidual, residual"),
    **dict.fromkeys(("lots",), "random_bits, generator"),
    **dict.fromkeys(("settle", "settles", "settled", "settling"), "bind, wait, commit, close"),
    **dict.fromkeys(("apart",), "steps_since_sync"),
}

# A whole name -> what to write for it. Their parts are fine in other names (`place_holder`).
NAMES = {
    "packet_left": "encode_with_residual",
    "split_left": "split_with_residual",
    "Moment": "Progress",
    "adds": "uses_allreduce",
    "draws": "contracts, randomised, generator",
    "opener": "single_packet_coder",
    "rereads": "needs_input_later",
    "masks": "carries_mask",
    "measures": "needs_link",
    "uneven": "skips_steps",
    "among": "global_ranks",
    "share": "weight, all_gather, rate, fraction",
    "place": "group_rank, device, address, index",
    "pieces": "extents, lane_plan, tokens",
    "again": "reencodes",
    "kept": "say what it holds: saved_state",
    "found": "say what it holds: problems",
    "asked": "say what it holds: requested",
    "odd": "say what it holds",
    "due": "say what it holds",
    "known": "say what it holds",
    "board": "rendezvous_store",
    "offer": "contribution",
    "claim": "set_once",
}

# A word, or words, of a docstring, comment, message or page -> what to write for it.
PROSE = {
    **dict.fromkeys(("told", "said", "unsaid"), "sent, encoded, given, named, dropped"),
    **dict.fromkeys(
        ("heard", "hear", "hears", "hearing", "spoken", "speak", "speaks"), "received, receive"
    ),
    **dict.fromkeys(("seat", "seats"), "rank, context"),
    **dict.fromkeys(("lots", "by lot", "by lots"), "random bits, at random"),
    **dict.fromkeys(("settle", "settles", "settled"), "bind, wait, commit, close"),
    "a whole number goes here": "expected an integer",
    "is no setting such as key=value": "expected key=value",
    **dict.fromkeys(("kin", "of the house"), "plain words: related, of this library"),
}

# Names that stay, and why.
ALLOWED = {
    "tell": "the method of Python's files",
}

# Texts that stay, and why.
CONTRACTS = {"lots of ": "random draws are keyed by its hash, so payloads depend on it"}

HISTORY = frozenset({"docs/log.md", "docs/decisions.md"})


def parts(name: str) -> list[str]:
    """Split `rows_told` and `RowsTold` into rows, told."""
    return [part.lower() for part in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+", name)]


def names(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and text of each name that a module binds or uses, and of keywords and attributes."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.lineno, node.name
        elif isinstance(node, ast.Name):
            yield node.lineno, node.id
        elif isinstance(node, ast.arg) or (isinstance(node, ast.keyword) and node.arg):
            yield node.lineno, str(node.arg)
        elif isinstance(node, ast.Attribute):
            yield node.lineno, node.attr
        elif isinstance(node, ast.alias) and node.asname:
            yield getattr(node, "lineno", 0), node.asname


def sentences(source: str, tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and text of each comment, and of each string of several words: docstrings, messages."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(text := node.value, str) and " " in text:
            yield from [] if text in CONTRACTS else [(node.lineno, text)]
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string


def prose_problems(text: str) -> Iterator[str]:
    for phrase, instead in PROSE.items():
        if re.search(rf"(?<![\w`.]){re.escape(phrase)}(?![\w`(])", text, re.IGNORECASE):
            yield f"{phrase!r}: write {instead}"


def name_problems(name: str) -> Iterator[str]:
    if name in ALLOWED:
        return
    if name.strip("_") in NAMES:
        yield f"the name {name}: write {NAMES[name.strip('_')]}"
    for part in parts(name):
        if part in NAME_PARTS:
            yield f"the name {name}: write {NAME_PARTS[part]}"


def source_problems(source: str) -> list[str]:
    """Each line of a module with a word of the left column, and what to write."""
    tree = ast.parse(source)
    problems = {(line, p) for line, name in names(tree) for p in name_problems(name)}
    problems |= {(line, p) for line, text in sentences(source, tree) for p in prose_problems(text)}
    return [f"line {line}, {problem}" for line, problem in sorted(problems)]


def page_problems(text: str) -> list[str]:
    """Each line of a Markdown page, outside code, with such a word."""
    prose = re.sub(
        r"```.*?```|`[^`\n]*`", lambda code: "\n" * code[0].count("\n"), text, flags=re.S
    )
    return [
        f"line {line}, {problem}"
        for line, words in enumerate(prose.splitlines(), 1)
        for problem in prose_problems(words)
    ]


def by_file(paths: Iterable[Path]) -> dict[str, list[str]]:
    """The problems of each file that has some, by its path from the root."""
    check = {".py": source_problems, ".md": page_problems}
    result = {}
    for path in paths:
        if problems := check[path.suffix](path.read_text(encoding="utf-8")):
            result[path.relative_to(ROOT).as_posix()] = problems
    return result


def everything() -> list[Path]:
    """Every source file and page that the words apply to."""
    every = [
        *sorted(SOURCE.rglob("*.py")),
        ROOT / "README.md",
        *sorted((ROOT / "docs").rglob("*.md")),
    ]
    return [path for path in every if path.relative_to(ROOT).as_posix() not in HISTORY]


def main(arguments: list[str]) -> None:
    given = [Path(argument).resolve() for argument in arguments]
    paths = [path for path in everything() if any(path.is_relative_to(each) for each in given)]
    for path, lines in by_file(paths or everything()).items():
        print(*(f"{path}: {line}" for line in lines), sep="\n")


if __name__ == "__main__":
    main(sys.argv[1:])
