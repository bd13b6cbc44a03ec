"""What a finished run leaves behind: `run.json`, and a picture of the loss against steps and
bytes."""

from __future__ import annotations

import dataclasses

from thinwire.train.folder import CONFIG, PLOT, RUN, RunFolder
from thinwire.train.plot import draw
from thinwire.train.result import Result


def write_outputs(folder: RunFolder, result: Result) -> Result:
    """Write both; the result that knows where everything is."""
    places = result.places | {name: str(folder.path / name) for name in (RUN, PLOT, CONFIG)}
    result = dataclasses.replace(result, places=places)
    folder.write(RUN, result.to_json())
    draw([result.figures()], [result.setting.config.strategy], folder.path / PLOT)
    return result
