"""Find components by name, and read and write them as plain tables (TOML).

All mistakes are reported at once.

A component is a frozen dataclass. Its fields are its whole configuration, so `repr`, equality and
the table form cost nothing: a component is the table `{use = "topk", k = 64, per = 4096}`, and
components nest.
"""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, Self
from weakref import WeakKeyDictionary

from thinwire.errors import StrategyError

NONE = "none"
"""What a table says for `None`."""


class Component:
    """A value of one of the slots `when`, `what`, `how`, `on` (or of a slot within one, such as
    `outer`)."""

    kind: ClassVar[str] = ""

    def __new__(cls, *args: Any, **settings: Any) -> Self:
        """Refuse settings of another type than the field's, before `__post_init__` reasons about
        their values."""
        if args or settings:
            _refuse_types(cls, args, settings)
        return super().__new__(cls)


def components(kind: str) -> dict[str, type[Component]]:
    """Return every concrete component class of a kind by its name; subclasses register by
    existing."""
    by_name: dict[str, type[Component]] = {}
    for cls in _subclasses(Component):
        if (
            cls.kind == kind
            and dataclasses.is_dataclass(cls)
            and not inspect.isabstract(cls)
            and not cls.__name__.startswith("_")
        ):
            # A name must find one class: tables and fingerprints hold names alone.
            other = by_name.setdefault(cls.__name__, cls)
            if other is not cls:
                message = (
                    f"two classes are called {cls.__name__} in {kind!r}: {other.__module__} and "
                    f"{cls.__module__}. Rename one."
                )
                raise StrategyError(message)
    return by_name


def find(kind: str, name: str) -> type[Component]:
    """Return the component class called `name`.

    Raises:
        StrategyError: no component of that kind has that name; the nearest names are suggested.
    """
    by_name = components(kind)
    if name in by_name:
        return by_name[name]
    near = difflib.get_close_matches(name, by_name, n=3)
    hint = (
        f"Did you mean {' or '.join(near)}?"
        if near
        else f"There are: {', '.join(sorted(by_name)) or 'none'}."
    )
    raise StrategyError(f"{kind}: no component is called {name!r}. {hint}")


def find_of_any_kind(name: str) -> type[Component]:
    """Return the component class called `name`, whatever its kind.

    Raises:
        StrategyError: none is called so.
    """
    kinds = sorted({cls.kind for cls in _subclasses(Component)})
    for kind in kinds:
        if name in (classes := components(kind)):
            return classes[name]
    near = difflib.get_close_matches(
        name, [each for kind in kinds for each in components(kind)], n=3
    )
    hint = f" Did you mean {' or '.join(near)}?" if near else ""
    raise StrategyError(f"no component is called {name!r}.{hint}")


def inside(value: Any) -> Iterator[Component]:
    """Yield a component and every component within it, at any depth.

    Example:
        >>> from thinwire.what import cast, feedback, topk
        >>> [type(component).__name__ for component in inside(feedback(topk(3) >> cast()))]
        ['feedback', 'chain', 'topk', 'cast']
    """
    if isinstance(value, tuple):
        for item in value:
            yield from inside(item)
    elif isinstance(value, Component):
        yield value
        for field in dataclasses.fields(value):  # type: ignore[arg-type]  # components are dataclasses: `components` checks it
            yield from inside(getattr(value, field.name))


def spelled_out(component: Component, always: int) -> str:
    """Return the code that makes a component: its first `always` settings, and of the later ones
    those that differ from their defaults.

    So a setting that a later version adds does not change the text of a component saved without it.
    """
    settings = []
    for index, field in enumerate(dataclasses.fields(component)):  # type: ignore[arg-type]  # components are dataclasses: `components` checks it
        value = getattr(component, field.name)
        if index < always or value != _default(field):
            settings.append(f"{field.name}={value!r}")
    return f"{type(component).__name__}({', '.join(settings)})"


def to_table(component: Component) -> dict[str, Any]:
    """Return the plain table of a component with every setting; nested components are nested
    tables.

    TOML has no null: a `None` field is left out, or is "none" where `None` is not the default.
    """
    table: dict[str, Any] = {"use": type(component).__name__}
    for field in dataclasses.fields(component):  # type: ignore[arg-type]  # components are dataclasses: `components` checks it
        value = getattr(component, field.name)
        if value is None and _default(field) is not None:
            table[field.name] = NONE
        elif value is not None:
            table[field.name] = _plain(value)
    return table


def _default(field: dataclasses.Field[Any]) -> Any:
    return (
        field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
    )


def from_table(kind: str, table: Any, path: str, problems: list[str]) -> Component | None:
    """Return the component that a table describes, or `None`; what is wrong is added to `problems`
    with its path."""
    if not isinstance(table, Mapping):
        problems.append(f'{path}: expected a table such as {{use = "…"}}, found {table!r}')
        return None
    # 1. The class, by its name under "use".
    rest = dict(table)
    name = rest.pop("use", None)
    if not isinstance(name, str):
        problems.append(
            f"{path}: the key 'use' is missing; it names the component, one of "
            f"{', '.join(sorted(components(kind)))}"
        )
        return None
    try:
        cls = find(kind, name)
    except StrategyError as error:
        problems.extend(f"{path}: {reason}" for reason in error.reasons)
        return None
    # 2. Its settings: each of a name that it has, and of that setting's type.
    before = len(problems)
    hints = _hints(cls)
    fields = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    values: dict[str, Any] = {}
    for key, value in rest.items():
        if key not in fields:
            near = difflib.get_close_matches(key, fields, n=1)
            hint = (
                f"did you mean {near[0]!r}?"
                if near
                else f"it has: {', '.join(fields) or 'no keys'}"
            )
            problems.append(f"{path}.{key}: {name} has no such key; {hint}")
        else:
            values[key] = _typed(value, hints[key], f"{path}.{key}", problems)
    # 3. Settings without a default must be there.
    for key, field in fields.items():
        if (
            key not in values
            and field.default is dataclasses.MISSING
            and field.default_factory is dataclasses.MISSING
        ):
            problems.append(f"{path}.{key}: {name} needs it")
    if len(problems) > before:
        return None
    # 4. Make it. What its own checks refuse is added, too.
    try:
        return cls(**values)
    except StrategyError as error:
        problems.extend(f"{path}: {reason}" for reason in error.reasons)
        return None


_HINTS: WeakKeyDictionary[type[Any], Mapping[str, Any]] = WeakKeyDictionary()


def _hints(cls: type[Any]) -> Mapping[str, Any]:
    """Return the type of each setting of a class."""
    if cls not in _HINTS:  # each reading compiles every annotation anew
        _HINTS[cls] = typing.get_type_hints(cls)
    return _HINTS[cls]


def _refuse_types(cls: type[Component], args: tuple[Any, ...], settings: Mapping[str, Any]) -> None:
    hints = _hints(cls)
    fields = [field.name for field in dataclasses.fields(cls)]  # type: ignore[arg-type]
    given = dict(zip(fields, args, strict=False)) | {
        key: value for key, value in settings.items() if key in hints
    }
    reasons = [
        f"{cls.__name__}({key}={value!r}): expected {_named(hints[key])}"
        for key, value in given.items()
        if not _fits(value, hints[key])
    ]
    if reasons:
        raise StrategyError(reasons)


def _fits(value: Any, hint: Any) -> bool:
    """Return whether a value is of the type that an annotation names.

    Of a `Literal` any value passes: the class itself explains better which words it takes.
    """
    origin, options = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        return any(_fits(value, option) for option in options)
    if origin is tuple:
        wanted = (
            [options[0]] * len(value)
            if options[-1] is Ellipsis and isinstance(value, tuple)
            else options
        )
        return (
            isinstance(value, tuple)
            and len(value) == len(wanted)
            and all(map(_fits, value, wanted))
        )
    if origin is typing.Literal:
        return True
    if not inspect.isclass(hint):
        return True
    # bool is a subclass of int: True must not pass as 1.
    if isinstance(value, bool):
        return hint is bool
    return isinstance(value, (int, float) if hint is float else hint)


def _named(hint: Any) -> str:
    options = typing.get_args(hint)
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        return " or ".join(_named(option) for option in options)
    if typing.get_origin(hint) is tuple:
        return f"({', '.join(_named(option) for option in options)})"
    return getattr(hint, "__name__", str(hint))


def _subclasses(cls: type[Component]) -> Iterator[type[Component]]:
    for sub in cls.__subclasses__():
        yield sub
        yield from _subclasses(sub)


def _plain(value: Any) -> Any:
    if isinstance(value, Component):
        return to_table(value)
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return value


def _typed(value: Any, hint: Any, path: str, problems: list[str]) -> Any:
    """Return `value` as the annotation `hint` wants it, or add a line to `problems`."""
    origin, options = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        return _one_of(value, options, path, problems)
    if origin is tuple and isinstance(value, list | tuple):
        return _each_of(value, options, path, problems)
    if inspect.isclass(hint) and issubclass(hint, Component):
        value = from_table(hint.kind, value, path, problems)
        if value is None:
            return None
    if origin is typing.Literal:
        # The type, too: 1 == True.
        if any(type(value) is type(option) and value == option for option in options):
            return value
        problems.append(f"{path}: {value!r} is not one of {', '.join(map(repr, options))}")
    elif hint is float and type(value) is int:
        return float(value)
    elif (
        not inspect.isclass(hint)
        or not isinstance(value, hint)
        or (hint is int and isinstance(value, bool))
    ):
        problems.append(f"{path}: expected {getattr(hint, '__name__', hint)}, found {value!r}")
    return value


def _one_of(value: Any, options: tuple[Any, ...], path: str, problems: list[str]) -> Any:
    """Return `value` as one of several annotations.

    Where it has the shape of only one of them, that one explains what is wrong.
    """
    if value == NONE and type(None) in options:
        return None
    # A table leaves out what is None.
    some = [option for option in options if option is not type(None)]
    shaped = [option for option in some if _shape(option) is _kind_of(value)] or some
    if len(shaped) == 1:
        return _typed(value, shaped[0], path, problems)
    # Try each; problems of those that do not fit are dropped.
    for option in shaped:
        tried: list[str] = []
        result = _typed(value, option, path, tried)
        if not tried:
            return result
    problems.append(
        f"{path}: expected "
        f"{' or '.join(getattr(option, '__name__', str(option)) for option in shaped)}, found "
        f"{value!r}"
    )
    return None


def _shape(hint: Any) -> type:
    """Return what TOML writes a value of this annotation as: a table, an array, or neither."""
    if inspect.isclass(hint) and issubclass(hint, Component):
        return dict
    return list if typing.get_origin(hint) is tuple else object


def _kind_of(value: Any) -> type:
    return (
        dict if isinstance(value, Mapping) else list if isinstance(value, list | tuple) else object
    )


def _each_of(
    values: Sequence[Any], options: tuple[Any, ...], path: str, problems: list[str]
) -> Any:
    wanted = [options[0]] * len(values) if options[-1] is Ellipsis else list(options)
    if len(wanted) != len(values):
        problems.append(f"{path}: expected {len(wanted)} items, found {len(values)}")
        return None
    return tuple(
        _typed(value, want, f"{path}[{i}]", problems)
        for i, (value, want) in enumerate(zip(values, wanted, strict=True))
    )
