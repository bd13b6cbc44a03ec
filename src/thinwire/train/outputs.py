"""Write the files of a finished run: `run.json`, and a picture of the loss against steps and
bytes."""

from __future__ import annotations

import dataclasses

from thinwire.train.folder import CONFIG, PLOT, RUN, RunFolder
from thinwire.train.plot import draw
from thinwire.train.result import Result


def write_outputs(folder: RunFolder, result: Result) -> Result:
    """Write both files, and return the result with the paths of all files."""
    paths = result.paths | {name: str(folder.path / name) for name in (RUN, PLOT, CONFIG)}
    result = dataclasses.replace(result, paths=paths)
    folder.write(RUN, result.to_json())
    draw([result.figures()], [result.setting.config.strategy], folder.path / PLOT)
    return result
