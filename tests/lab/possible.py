"""Whether labs can be on this machine; CI must have them."""

import os
from functools import cache

from thinwire.errors import LabError
from thinwire.lab import Lab, Wire, uniform


@cache
def why_not() -> str:
    """Why no lab can be here; empty where it can.

    Raises:
        LabError: it cannot, and this is CI.
    """
    try:
        with Lab(uniform(2, wire=Wire(rtt=0.001))):
            return ""
    except LabError as error:
        if os.environ.get("CI"):
            raise
        return str(error)
