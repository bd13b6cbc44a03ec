"""Read this process's environment; no other module does.

A launcher (torchrun, `thinwire train`, `thinwire lab run`) says by RANK, WORLD_SIZE, LOCAL_RANK and
their like who a process is. What is not set has the value of a run of one process.
"""

from __future__ import annotations

import os

from thinwire.errors import ConfigError


def text(name: str, default: str = "") -> str:
    """Return a variable, or `default` where it is not set."""
    return os.environ.get(name, default)


def is_set(name: str) -> bool:
    """Return whether a variable is set, if only to nothing."""
    return name in os.environ


def integer(name: str, default: int) -> int:
    """Return a variable as an integer, or `default` where it is not set.

    Raises:
        ConfigError: it is no integer.

    Example:
        >>> integer("NO_SUCH_VARIABLE", 3)
        3
    """
    value = os.environ.get(name)
    if value is None:
        return default
    try:
        return int(value)
    except ValueError:
        raise ConfigError(f"{name}={value!r}: expected an integer; correct or unset it") from None


def needed(name: str) -> str:
    """Return a variable that a launcher must have set.

    Raises:
        ConfigError: it is not set.
    """
    value = os.environ.get(name, "")
    if not value:
        raise ConfigError(
            f"{name} is not set: start the ranks with torchrun, thinwire train or thinwire lab run"
        )
    return value


def launched() -> bool:
    """Return whether a launcher has started this process as a rank."""
    return is_set("RANK")


def rank() -> int:
    """Return the number that a launcher gave this process; 0 without one."""
    return integer("RANK", 0)


def world_size() -> int:
    """Return how many ranks a launcher has started; 1 without one."""
    return integer("WORLD_SIZE", 1)


def local_rank() -> int:
    """Return this rank's number within its host; 0 without a launcher."""
    return integer("LOCAL_RANK", 0)


def local_world_size(default: int = 1) -> int:
    """Return how many ranks a launcher has started on this host."""
    return integer("LOCAL_WORLD_SIZE", default)


def group_rank() -> int:
    """Return the number of this rank's host; 0 without a launcher."""
    return integer("GROUP_RANK", 0)


def copy() -> dict[str, str]:
    """Return the whole environment, for a child process to start from."""
    return dict(os.environ)


def put(name: str, value: str) -> None:
    """Set a variable of this process, for a library that reads it later."""
    os.environ[name] = value


def put_default(name: str, value: str) -> None:
    """Set a variable of this process where the user has not."""
    os.environ.setdefault(name, value)


def drop(name: str) -> None:
    """Unset a variable of this process."""
    os.environ.pop(name, None)
