"""The time of day jumps, forwards and back, while requests are under way.

The server's processes, those that speak HTTP and those that decode included, have a `time.time`
that a file shifts. C code that reads the clock by itself is not shifted. (libfaketime would shift
it, but processes under it did not always get as far as Python here; why was not looked into.)
"""

from __future__ import annotations

import os
import time
from pathlib import Path

import httpx
import pytest

from hostile.load import Load, wait
from security.processes import server_process
from security.raw_http import connect, status, until_closed

pytestmark = pytest.mark.hostile
_SHIFTED = Path(__file__).with_name("shifted_clock")
_DAY = 86400.0
JUMPS = (400 * _DAY, -400 * _DAY, 3 * 3600.0, -3650 * _DAY, 0.0)


@pytest.mark.parametrize("processes", ["1", "2"])
def test_the_clock_jumps(tmp_path: Path, processes: str) -> None:
    """No answer fails, nothing times out, no process is replaced, and limits still hold."""
    clock = tmp_path / "clock"
    clock.write_text("0")
    environment = {
        "SHIFTED_CLOCK": str(clock),
        "PYTHONPATH": f"{_SHIFTED}:{os.environ.get('PYTHONPATH', '')}",
    }
    flags = ("--http-processes", processes, "--header-timeout", "1")
    with (
        server_process(tmp_path, *flags, environment=environment) as server,
        Load(server.url, threads=3) as load,
        httpx.Client() as kept,
    ):
        children = {child.pid for child in server.process.children()}
        for jump in JUMPS:
            _set(clock, jump)
            year = time.gmtime(time.time() + jump).tm_year
            wait(lambda year=year: _year(server.url) == year, "the clock did not jump")  # type: ignore[misc]
            load.more()
            assert kept.get(f"{server.url}/status").status_code == 200
            with connect(server.url) as silent:
                silent.sendall(b"POST /embed HTTP/1.1\r\nHost:")
                assert status(until_closed(silent)) == 408
        load.only()
        assert children <= {child.pid for child in server.process.children()}
        assert "Traceback" not in server.log.read_text()


def _set(clock: Path, seconds: float) -> None:
    """In one step: a reader meets no half of a number."""
    new = clock.with_suffix(".new")
    new.write_text(str(seconds))
    new.rename(clock)


def _year(url: str) -> int:
    """Of the service, by the header that uvicorn writes once a second."""
    return int(httpx.get(f"{url}/health/live").headers["Date"].split()[3])
