"""Runs `vim-embed` again and again, each time killed one step later while it joins its output.

python join_killed.py ARGS...: a step is anything that changes a file (opening, writing, fsync,
removing, renaming), counted from the moment in which the output begins to be written. After each
kill the script prints the step and waits for a line; it ends after the run that was not killed.
Each run is a fork of this process, so that the imports are paid for once.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet  # noqa: F401 - before the forks

from vim_embed_client.bulk import outputs, run
from vim_embed_client.cli import embed as embed_command  # noqa: F401 - before the forks
from vim_embed_client.cli.main import run as vim_embed


def killing(left: list[int], real: Callable[..., Any]) -> Callable[..., Any]:
    """`real`, but the process dies before the call in which `left` is used up."""

    def call(*args: Any, **kwargs: Any) -> Any:
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*args, **kwargs)

    return call


def run_until(step: int, args: list[str]) -> int:
    """The exit code of the command, in this process."""
    real = run.write_output  # type: ignore[attr-defined]
    left = [step]

    def joining(*args: Any, **kwargs: Any) -> None:
        os.replace, os.fsync = killing(left, os.replace), killing(left, os.fsync)
        Path.unlink = killing(left, Path.unlink)  # type: ignore[method-assign]
        Path.open = killing(left, Path.open)  # type: ignore[method-assign]
        outputs._bytes = killing(left, outputs._bytes)
        outputs._write_sidecar = killing(left, outputs._write_sidecar)
        real(*args, **kwargs)

    run.write_output = joining  # type: ignore[attr-defined]
    return vim_embed(args)


def main(args: list[str]) -> int:
    for step in range(1, 100):
        child = os.fork()
        if child == 0:
            os._exit(run_until(step, args))
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if code != -signal.SIGKILL:
            return code
        print(step, flush=True)
        sys.stdin.readline()
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
