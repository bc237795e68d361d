"""schemathesis over the whole OpenAPI document of a running server, its control routes included."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from fuzz import FLAGS

from security.processes import server_process

_CONFIG = Path(__file__).with_name("schemathesis.toml")
_CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_schema_conformance",
)


def explore(folder: Path, examples: int) -> str:
    """What schemathesis reports; raises AssertionError with it where a check failed."""
    with server_process(folder, *FLAGS, "--model-control", "--fault-injection") as server:
        command = [sys.executable, "-m", "schemathesis.cli", "--config-file", str(_CONFIG)]
        command += ["run", f"{server.url}/openapi.json", "--checks", ",".join(_CHECKS)]
        command += ["--phases", "examples,coverage,fuzzing", "--max-examples", str(examples)]
        # An armed fault makes later forwards fail, which is its purpose.
        command += ["--exclude-path", "/faults", "--seed", "1", "--no-color"]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
        log = server.log.read_text()
        assert server.alive
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    assert "Traceback" not in log, log[-3000:]
    return done.stdout


def test_every_operation_keeps_to_its_document(tmp_path: Path) -> None:
    tested, generated = counts(explore(tmp_path, 3))
    assert tested >= 29
    assert generated >= 300


@pytest.mark.soak
@pytest.mark.timeout(0)
def test_every_operation_keeps_to_its_document_for_long(tmp_path: Path) -> None:
    report = explore(tmp_path, int(os.environ.get("VIM_EMBED_FUZZ_EXAMPLES", "200")))
    print(report[-1500:])
    assert counts(report)[1] >= 2_000


def counts(report: str) -> tuple[int, int]:
    """Operations tested, all of those selected; cases generated."""
    selected = re.search(r"Selected: (\d+)/(\d+)", report)
    tested = re.search(r"Tested: (\d+)", report)
    cases = re.search(r"(\d+) generated", report)
    assert selected is not None, report
    assert tested is not None, report
    assert cases is not None, report
    assert tested[1] == selected[1], report
    return int(tested[1]), int(cases[1])
