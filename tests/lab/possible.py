"""Whether labs can be on this machine; CI must have them."""

import os
from functools import cache

from thinwire.errors import LabError
from thinwire.lab import Lab
from thinwire.net import Wire, uniform


@cache
def why_not() -> str:
    """Why no lab can be here; empty where it can.

    Raises:
        LabError: it cannot, and this is CI.
    """
    try:
        with Lab(uniform(2, wire=Wire(latency_s=0.0005))):
            return ""
    except LabError as error:
        if os.environ.get("CI"):
            raise
        return str(error)
