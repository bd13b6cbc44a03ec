"""Read a component from the code that makes it, as its `repr` prints it.

An example is `feedback(topk(64, per=4096) >> uniform(bits=2), decay=0.95)`. Only calls of
components, numbers, texts, tuples and `>>` are read; nothing is run.
"""

from __future__ import annotations

import ast
from collections.abc import Collection
from typing import Any

from thinwire.core.component import Component, find, find_of_any_kind
from thinwire.errors import StrategyError
from thinwire.text.words import expression


def spelled(kind: str, text: str) -> Any:
    """Read the component that `text` makes.

    Args:
        kind: "when", "what", "how" or "on"; the package must have been imported, so that its
            components are known.
        text: code.

    Raises:
        StrategyError: it is no such code, or the component refuses its settings.

    Example:
        >>> import thinwire.what
        >>> spelled("what", "topk(64, per=4096) >> uniform(bits=2)").first
        topk(k=64, per=4096)
    """
    made = _value(_tree(text), text, kind)
    if not isinstance(made, Component):
        raise StrategyError(f"{text!r} makes no component; write a call, such as uniform(4)")
    return made


def read_call(text: str, name: str, keys: Collection[str]) -> dict[str, Any]:
    """Read the keyword arguments of a call of `name`, each a component of the kind that its key
    names.

    Raises:
        StrategyError: it is another call, or has other keys.

    Example:
        >>> import thinwire.when
        >>> read_call("Strategy(when=every(n=4))", "Strategy", ("when", "what"))
        {'when': every(n=4)}
    """
    call = _tree(text)
    if not (
        isinstance(call, ast.Call)
        and isinstance(call.func, ast.Name)
        and call.func.id == name
        and not call.args
        and all(each.arg in keys for each in call.keywords)
    ):
        raise StrategyError(
            f"{text[:80]!r} is no code such as {name}({', '.join(f'{key}=…' for key in keys)})"
        )
    return {str(each.arg): _value(each.value, text, str(each.arg)) for each in call.keywords}


def _tree(text: str) -> ast.expr:
    try:
        return expression(text.strip())
    except SyntaxError as error:
        raise StrategyError(f"{text!r} is no code such as uniform(4): {error.msg}") from error


def _value(node: ast.expr, text: str, kind: str | None = None) -> Any:
    """Return the value that a node makes; a component of `kind`, or of any kind within another
    one."""
    # Literals, tuples and `>>`, then a bare class name, then a call: nothing else is read.
    if isinstance(node, ast.Constant) and isinstance(node.value, int | float | str | bool | None):
        return node.value
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return -_value(node.operand, text)
    if isinstance(node, ast.Tuple | ast.List):
        return tuple(_value(each, text) for each in node.elts)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.RShift):
        return _value(node.left, text, kind) >> _value(node.right, text, kind)
    if isinstance(node, ast.Name):
        return _class(node.id, kind)()
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        settings = {
            each.arg: _value(each.value, text) for each in node.keywords if each.arg is not None
        }
        cls = _class(node.func.id, kind)
        try:
            return cls(*(_value(each, text) for each in node.args), **settings)
        except TypeError as error:
            raise StrategyError(f"{ast.unparse(node)}: {error}") from error
    raise StrategyError(
        f"{ast.unparse(node)!r} in {text!r} is not read here: calls of components, numbers, texts, "
        "tuples and >> are"
    )


def _class(name: str, kind: str | None) -> type[Component]:
    return find_of_any_kind(name) if kind is None else find(kind, name)
