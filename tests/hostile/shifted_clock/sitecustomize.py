"""Python imports this first where its folder is on the path: the time of day is what a file says.

SHIFTED_CLOCK names the file; it holds the seconds that are added. Monotonic clocks stay as they
are, as they do when somebody sets the clock of a machine.
"""

import os
import time
from pathlib import Path

_FILE = Path(os.environ["SHIFTED_CLOCK"])
_time, _time_ns = time.time, time.time_ns


def _shift() -> float:
    return float(_FILE.read_text() or 0)


time.time = lambda: _time() + _shift()
time.time_ns = lambda: _time_ns() + int(1e9 * _shift())
