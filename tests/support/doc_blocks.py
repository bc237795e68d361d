"""The code blocks of the documentation, and how they are run as a reader would.

Bash blocks run in a shell. Python blocks of one page share one interpreter, in order. A bash block
that ends by serving is ended once the server is ready, or serves the blocks behind it.
"""

from __future__ import annotations

import json
import os
import re
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import httpx

PATIENCE = 600  # seconds for one block
# Beside other work, threads that wait for each other within a matrix product take minutes for it.
_ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
DOCUMENTED_URL = "http://127.0.0.1:8000"
_FENCE = re.compile(r"^```(\S*)[^\n]*\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_SERVE = re.compile(r"^(\w+=\S+ )*vim-embed-server serve\b", re.MULTILINE)
_DATA = re.compile(r"(?<![\w.~/-])/data/")
_PORT = re.compile(r"--port[ =]\d+")

# Reads {"code", "name"} lines, runs each in one namespace, answers with a traceback or "".
_INTERPRETER = """
import json, linecache, os, sys, traceback
names, answers = {"__name__": "__main__"}, os.fdopen(int(sys.argv[1]), "w", buffering=1)
for line in sys.stdin:
    block = json.loads(line)
    code, name = block["code"], block["name"]
    linecache.cache[name] = (len(code), None, code.splitlines(True), name)
    try:
        exec(compile(code, name, "exec"), names)
        answers.write(json.dumps("") + "\\n")
    except BaseException:
        answers.write(json.dumps(traceback.format_exc()) + "\\n")
"""


class BlockFailed(AssertionError):
    """A block that does not do what its page says; shows what it printed."""


@dataclass(frozen=True)
class Block:
    """A fenced block: its page, the line it begins on, its language and text."""

    page: str
    line: int
    language: str
    code: str

    @property
    def first_line(self) -> str:
        return next((line for line in self.code.splitlines() if line.strip()), "")

    @property
    def name(self) -> str:
        return f"{self.page}:{self.line}"


def blocks_of(path: Path, root: Path) -> list[Block]:
    """Every fenced block of a page, in order."""
    text = path.read_text()
    page = path.relative_to(root).as_posix()
    return [
        Block(page, text.count("\n", 0, match.start()) + 1, match[1], match[2])
        for match in _FENCE.finditer(text)
    ]


class Reader:
    """Runs the blocks of one page in `folder`. Close it, or use it in a `with`.

    url: of the server that stands for the one the pages talk of; None: a block that serves starts
    it, and it serves until another block does. env: of every process. The pages' /data/ is the
    folder's own data/.
    """

    def __init__(self, folder: Path, url: str | None, env: Mapping[str, str]) -> None:
        self._folder = folder
        self._keeps_servers = url is None
        self._server: subprocess.Popen[bytes] | None = None
        self._url = DOCUMENTED_URL if url is None else url
        self._env = {**os.environ, **_ONE_THREAD, **env, "VIM_EMBED_URL": self._url}
        self._env["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        self._python: subprocess.Popen[str] | None = None
        self._answers = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._end_server()
        if self._python is not None:
            self._python.kill()
            self._python.wait()
            assert self._python.stdin is not None
            with suppress(BrokenPipeError):
                self._python.stdin.close()
            os.close(self._answers)

    def run(self, block: Block) -> None:
        """Run one block. Raises BlockFailed."""
        code = block.code.replace(DOCUMENTED_URL, self._url)
        code = _DATA.sub(f"{self._folder}/data/", code)
        if block.language == "python":
            self._run_python(block, code)
        elif _SERVE.search(code):
            self._run_server(block, code)
        else:
            self._run_bash(block, code)

    def _run_bash(self, block: Block, code: str) -> None:
        log = self._folder / ".block.log"
        with log.open("w") as file:
            done = self._start_bash(code, file.fileno())
            try:
                status = done.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                _end(done)
                raise BlockFailed(f"{block.name} ran for {PATIENCE} s\n{log.read_text()}") from None
        if status:
            raise BlockFailed(f"{block.name} ended with {status}\n{log.read_text()}")

    def _run_server(self, block: Block, code: str) -> None:
        """Start what serves, wait until it is ready, and end it as an operator would.

        A server that is kept is ended when another block serves, or with the page.
        """
        self._end_server()
        port = _free_port()
        code = _PORT.sub(f"--port {port}", code)
        log = self._folder / ".server.log"
        with log.open("w") as file:
            server = self._server = self._start_bash(code, file.fileno(), VIM_EMBED_PORT=str(port))
            ready = _until_ready(server, f"http://127.0.0.1:{port}")
        if self._keeps_servers and ready:
            self._url = self._env["VIM_EMBED_URL"] = f"http://127.0.0.1:{port}"
        else:
            self._end_server()
        if not ready:
            raise BlockFailed(f"{block.name} did not become ready\n{log.read_text()}")

    def _end_server(self) -> None:
        if self._server is not None:
            _end(self._server)
            self._server = None

    def _start_bash(self, code: str, output: int, **env: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            ["bash", "-euo", "pipefail", "-c", code],
            cwd=self._folder,
            env={**self._env, **env},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def _run_python(self, block: Block, code: str) -> None:
        if self._python is None:
            self._start_python()
        assert self._python is not None
        assert self._python.stdin is not None
        self._python.stdin.write(json.dumps({"code": code, "name": block.name}) + "\n")
        self._python.stdin.flush()
        if not select.select([self._answers], [], [], PATIENCE)[0]:
            raise BlockFailed(f"{block.name} ran for {PATIENCE} s")
        failure = json.loads(_read_line(self._answers) or '"the interpreter ended"')
        if failure:
            raise BlockFailed(f"{block.name}\n{failure}")

    def _start_python(self) -> None:
        self._answers, theirs = os.pipe()
        self._python = subprocess.Popen(
            [sys.executable, "-c", _INTERPRETER, str(theirs)],
            cwd=self._folder,
            env=self._env,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            pass_fds=[theirs],
            text=True,
        )
        os.close(theirs)


def _read_line(descriptor: int) -> str:
    return b"".join(iter(lambda: _read_byte(descriptor), b"")).decode()


def _read_byte(descriptor: int) -> bytes:
    byte = os.read(descriptor, 1)
    return b"" if byte == b"\n" else byte


def _until_ready(server: subprocess.Popen[bytes], url: str) -> bool:
    end = time.monotonic() + PATIENCE
    with httpx.Client() as http:
        while time.monotonic() < end and server.poll() is None:
            with suppress(httpx.TransportError):
                if http.get(f"{url}/health/ready").status_code == 200:
                    return True
            time.sleep(0.1)
    return False


def _end(process: subprocess.Popen[bytes]) -> None:
    """SIGTERM to the block's own group of processes, then SIGKILL."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with suppress(subprocess.TimeoutExpired):
            process.wait(30)
            return


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def pages(root: Path) -> list[Path]:
    """README.md and every page of docs/."""
    return [root / "README.md", *sorted((root / "docs").rglob("*.md"))]
