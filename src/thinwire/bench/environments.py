"""Environments of rivals: thinwire's own, plus what one rival needs, kept apart from what others need.

A rival's `REQUIRES` holds lines; each line is the arguments of one `pip install`, in order:

    REQUIRES = ("setuptools==80.9.0 wheel==0.45.1", "--no-build-isolation deepspeed==0.19.8")

The environment sees the packages of the one that made it, after its own: torch is shared, and pinned, so that pip never brings another.
"""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import venv
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

from thinwire.errors import BenchError

SAID = 5  # lines of pip's complaint that an error repeats


def python_for(requires: tuple[str, ...], folder: Path, build_env: Mapping[str, str] | None = None) -> Path:
    """The interpreter of an environment that has what `requires` asks for, built under `folder` where it is not there yet.

    It is built aside and renamed, so an interrupted or failed build leaves nothing behind that looks whole, and two builders do not clash.
    Scripts in its bin/ name the folder it was built in: run modules (`python -m`), not scripts.

    Args:
        requires: the arguments of each `pip install`; none: the interpreter that runs this.
        folder: where environments are kept, each under a hash of `requires`, `build_env`, Python's version and torch's.
        build_env: environment variables for pip's builds.

    Raises:
        BenchError: pip could not install it; the last lines that it said.
    """
    if not requires:
        return Path(sys.executable)
    build_env = dict(build_env or {})
    torch = version("torch")
    key = hashlib.sha256(json.dumps([requires, build_env, sys.version, torch], sort_keys=True).encode()).hexdigest()[:16]
    home = folder.resolve() / key
    python = home / "bin" / "python"
    if python.exists():
        return python
    folder.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=f"{key}.", dir=folder.resolve()))
    try:
        _build(aside, requires, torch, build_env)
        try:
            aside.rename(home)
        except OSError:
            if not python.exists():
                raise  # else: another builder was first, and its environment is as good
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return python


def _build(home: Path, requires: tuple[str, ...], torch: str, build_env: Mapping[str, str]) -> None:
    """Make the environment, share the packages of this one, install each line."""
    venv.create(home, with_pip=True, symlinks=True)
    python = home / "bin" / "python"
    own = Path(_out([str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]))
    shared = [path for path in sys.path if path.endswith(("site-packages", "dist-packages"))]
    # addsitedir: an editable install in the shared packages is a .pth file of theirs, which a bare path line would not read.
    # The end: what is installed here comes first.
    (own / "shared.pth").write_text("".join(f"import site; site.addsitedir({path!r})\n" for path in shared))
    pins = home / "pins.txt"
    pins.write_text(f"torch=={torch}\n")
    for line in requires:
        command = [str(python), "-m", "pip", "install", "--no-input", "--constraint", str(pins), *shlex.split(line)]
        done = subprocess.run(command, capture_output=True, text=True, env=os.environ | build_env, check=False)
        if done.returncode:
            said = [text.strip() for text in (done.stdout + done.stderr).splitlines() if text.strip()]
            errors = [text for text in said if "error" in text.lower()] or said
            raise BenchError(f"pip install {line} failed:\n" + "\n".join(errors[-SAID:]))


def _out(command: list[str]) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
