"""What the four idea folders hold: shared by the tests of exports and of registration."""

import importlib
import inspect
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "thinwire"
INTERFACES = {
    "when": "Schedule",
    "what": "Codec",
    "how": "Route",
    "on": "Target",
}  # folder -> its interface in core


def files() -> list[tuple[str, str]]:
    """List (folder, module) of every public file below the idea folders, as found on disk."""
    found = (
        (folder, path.stem) for folder in INTERFACES for path in (SOURCE / folder).rglob("*.py")
    )
    return sorted(pair for pair in found if not pair[1].startswith("_"))


def load(folder: str, name: str = "") -> ModuleType:
    """Import an idea folder, or one module of it, in whichever package below the folder it is."""
    if not name:
        return importlib.import_module(f"thinwire.{folder}")
    (path,) = (SOURCE / folder).rglob(f"{name}.py")
    return importlib.import_module(".".join(path.relative_to(SOURCE.parent).with_suffix("").parts))


def interface(folder: str, name: str) -> type:
    """What the public classes of one file subclass."""
    core = importlib.import_module("thinwire.core")
    if (folder, name) == ("on", "outer"):  # outer optimisers are parts of a target, not targets
        return core.Outer if hasattr(core, "Outer") else load(folder, name).Outer
    return getattr(core, INTERFACES[folder])


def classes(folder: str, name: str) -> list[type]:
    """The public classes that the file itself defines and that subclass its interface by name (not
    merely by shape)."""
    module, base = load(folder, name), interface(folder, name)
    mine = (
        cls
        for cls in vars(module).values()
        if isinstance(cls, type) and cls.__module__ == module.__name__
    )
    return [cls for cls in mine if base in cls.__mro__[1:] and not cls.__name__.startswith("_")]


def concrete(folder: str, name: str) -> list[type]:
    """Those that a user can make."""
    return [
        cls
        for cls in classes(folder, name)
        if not inspect.isabstract(cls) and not getattr(cls, "_is_protocol", False)
    ]
