"""A member from the code that makes it, as its `repr` prints: `feedback(topk(64, per=4096) >>
uniform(bits=2), decay=0.95)`.

Only calls of members, numbers, texts, tuples and `>>` are read; nothing is run.
"""

from __future__ import annotations

import ast
from typing import Any

from thinwire.errors import StrategyError
from thinwire.registry import Member, find
from thinwire.words import expression


def spelled(kind: str, text: str) -> Any:
    """The member that `text` makes.

    Args:
        kind: "when", "what", "how" or "on"; the folder must have been imported, so that its members
            are known.
        text: code.

    Raises:
        StrategyError: it is no such code, or the member refuses its settings.

    Example:
        >>> import thinwire.what
        >>> spelled("what", "topk(64, per=4096) >> uniform(bits=2)").first
        topk(k=64, per=4096)
    """
    try:
        tree = expression(text.strip())
    except SyntaxError as error:
        raise StrategyError(f"{text!r} is no code such as uniform(4): {error.msg}") from error
    made = _made(kind, tree, text)
    if not isinstance(made, Member):
        raise StrategyError(f"{text!r} makes no member; write a call, such as uniform(4)")
    return made


def _made(kind: str, node: ast.expr, text: str) -> Any:
    if isinstance(node, ast.Constant) and isinstance(node.value, int | float | str | bool | None):
        return node.value
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return -_made(kind, node.operand, text)
    if isinstance(node, ast.Tuple | ast.List):
        return tuple(_made(kind, each, text) for each in node.elts)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.RShift):
        return _made(kind, node.left, text) >> _made(kind, node.right, text)
    if isinstance(node, ast.Name):
        return find(kind, node.id)()
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        settings = {
            each.arg: _made(kind, each.value, text)
            for each in node.keywords
            if each.arg is not None
        }
        try:
            return find(kind, node.func.id)(
                *(_made(kind, each, text) for each in node.args), **settings
            )
        except TypeError as error:
            raise StrategyError(f"{ast.unparse(node)}: {error}") from error
    raise StrategyError(
        f"{ast.unparse(node)!r} in {text!r} is not read here: calls of members, numbers, texts, "
        "tuples and >> are"
    )
