"""Build environments of rivals: thinwire's own, plus what one rival needs, kept apart from what
others need.

A rival's `REQUIRES` holds lines; each line is the arguments of one `pip install`, in order:

    REQUIRES = ("setuptools==80.9.0 wheel==0.45.1", "--no-build-isolation deepspeed==0.19.8")

The environment sees the packages of the one that made it, after its own: torch is shared, and
pinned, so that pip never brings another.
"""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import venv
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

from thinwire import env
from thinwire.errors import BenchError

COMPLAINT_LINES = 5  # the last lines of a failed command's output that an error repeats
PIP = ("-I", "-m", "ensurepip", "--default-pip")


def python_for(
    requires: tuple[str, ...], folder: Path, build_env: Mapping[str, str] | None = None
) -> Path:
    """Return the interpreter of an environment with `requires`; build it under `folder` if need be.

    It is built aside and renamed, so an interrupted or failed build leaves nothing behind that
    looks whole, and two builders do not clash. Scripts in its bin/ name the folder it was built in:
    run modules (`python -m`), not scripts.

    Args:
        requires: the arguments of each `pip install`; none: the interpreter that runs this.
        folder: holds the environments, each under a hash of `requires`, `build_env`, Python's
            version and torch's.
        build_env: environment variables for pip's builds.

    Raises:
        BenchError: it could not be made, or pip could not install a package; with the last lines
            of the output.
    """
    if not requires:
        return Path(sys.executable)
    build_env = dict(build_env or {})
    # 1. The key holds all that decides what is installed.
    torch = version("torch")
    key = hashlib.sha256(
        json.dumps([requires, build_env, sys.version, torch], sort_keys=True).encode()
    ).hexdigest()[:16]
    home = folder.resolve() / key
    python = home / "bin" / "python"
    if python.exists():
        return python
    # 2. Build aside and rename.
    folder.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=f"{key}.", dir=folder.resolve()))
    try:
        _build(aside, requires, torch, build_env)
        try:
            aside.rename(home)
        except OSError:
            if not python.exists():
                # Otherwise another builder was first, and its environment is as good.
                raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return python


def _build(home: Path, requires: tuple[str, ...], torch: str, build_env: Mapping[str, str]) -> None:
    """Make the environment, share the packages of this one, install each line."""
    # 1. An environment with its own pip; builds leave nothing elsewhere.
    venv.create(home, symlinks=True)
    python = str(home / "bin" / "python")
    scratch = home / "scratch"  # of builds: what is interrupted leaves nothing elsewhere
    scratch.mkdir()
    variables = {**env.copy(), "TMPDIR": str(scratch), **build_env}
    _ran(
        [python, *PIP],
        variables,
        "no pip for a new environment (on Debian: apt-get install python3-venv)",
    )
    # 2. Share this environment's packages, so that torch is not installed once for each rival.
    own = Path(
        _ran(
            [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
            variables,
            f"{python} does not run",
        )
    )
    shared = [path for path in sys.path if path.endswith(("site-packages", "dist-packages"))]
    # addsitedir: an editable install in the shared packages is a .pth file of theirs, which a bare
    # path line would not read. The end: what is installed here comes first.
    (own / "shared.pth").write_text(
        "".join(f"import site; site.addsitedir({path!r})\n" for path in shared)
    )
    # 3. Each line in turn; torch stays at this version whatever a package asks for.
    pins = home / "pins.txt"
    pins.write_text(f"torch=={torch}\n")
    for line in requires:
        command = [
            python,
            "-m",
            "pip",
            "install",
            "--no-input",
            "--constraint",
            str(pins),
            *shlex.split(line),
        ]
        _ran(command, variables, f"pip install {line} failed")
    shutil.rmtree(scratch)


def _ran(command: list[str], variables: Mapping[str, str], failed: str) -> str:
    """Run a command and return its standard output.

    Where this process has to end meanwhile, the command and all that it started end first.

    Raises:
        BenchError: `failed`, and the command's last lines.
    """
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        env=variables,
        start_new_session=True,
    ) as process:
        try:
            out, complaint = process.communicate()
        except BaseException:
            # The command has a session of its own, so all that it started ends with it.
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()  # until nobody is left to write
            raise
    if process.returncode:
        lines = [text.strip() for text in (out + complaint).splitlines() if text.strip()]
        errors = [text for text in lines if "error" in text.lower()] or lines
        raise BenchError(f"{failed}:\n" + "\n".join(errors[-COMPLAINT_LINES:]))
    return out.strip()
