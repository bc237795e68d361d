"""Nothing in the code unpickles or runs data, and neither answers nor logs hold an API key."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
from generate_docs import ROOT

from security.code_rules import violations
from security.processes import ServerProcess, server_process
from support.serving import NPY, npy
from vim_embed.errors import ERRORS

SOURCES = sorted(
    path for folder in ("service/vim_embed", "client/vim_embed_client", "client/vim_embed_pixels")
    for path in (ROOT / folder).rglob("*.py")
)  # fmt: skip


# What a command and a process of its own say to each other, through a pipe that nobody else has.
BETWEEN_OWN_PROCESSES = {"client/vim_embed_client/bulk/sources/apart.py": {"load", "dump"}}


def test_no_data_is_run() -> None:
    assert len(SOURCES) > 80
    found = {str(path.relative_to(ROOT)): violations(path.read_text()) for path in SOURCES}
    for path, calls in BETWEEN_OWN_PROCESSES.items():
        own = found.pop(path)
        assert {what.partition(": pickle.")[2] for what in own} == calls | {"HIGHEST_PROTOCOL"}
    assert {path: what for path, what in found.items() if what} == {}


@pytest.mark.parametrize(
    "line",
    [
        "pickle.loads(data)",
        "import pickle as p",
        "from pickle import loads",
        "import dill",
        "import joblib.numpy_pickle",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "torch.load(path, weights_only=flag)",
        "from torch import load",
        "np.load(path)",
        "np.load(path, allow_pickle=True)",
        "numpy.load(path, mmap_mode='r')",
        "eval(text)",
        "exec(text)",
        "__import__(name)",
        "yaml.load(text)",
        "subprocess.run(command, shell=True)",
        "AutoModel.from_pretrained(name)",
        "AutoModel.from_pretrained(name, weights_only=True, trust_remote_code=True)",
        "httpx.Client(verify=False)",
        "os.system(command)",
    ],
)
def test_what_would_be_found(line: str) -> None:
    assert violations(line)


@pytest.mark.parametrize(
    "line",
    [
        "torch.load(path, weights_only=True)",
        "np.load(path, allow_pickle=False)",
        "model.eval()",
        "re.compile('x')",
        "try: pass\nexcept pickle.UnpicklingError: pass",
    ],
)
def test_what_is_fine(line: str) -> None:
    assert not violations(line)


KEY, ADMIN, WRONG = "galaxy-k3y-7f31c09d", "admin-k3y-55aa10ce", "guessed-k3y-0123abcd"
CONNECTIONS = 16
FLAGS = (
    "--api-keys", KEY, "--admin-keys", ADMIN, "--log-level", "debug", "--log-format", "json",
    "--model-control", "--fault-injection", "--max-rows", "8", "--queue-rows", "8",
    "--body-timeout", "1", "--forward-timeout", "3", "--max-connections", str(CONNECTIONS),
)  # fmt: skip
_ROWS = npy(np.zeros((8, 3, 8, 8), np.uint8))


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[list[httpx.Response], str]]:
    """Every answer of a server that was made to fail in each way, and its log."""
    with server_process(tmp_path_factory.mktemp("keys"), *FLAGS) as server:
        answers = provoke(server)
        yield answers, server.log.read_text()


def provoke(server: ServerProcess) -> list[httpx.Response]:
    answers: list[httpx.Response] = []

    def ask(
        method: str, path: str, content: object = b"", key: str = KEY, **headers: str
    ) -> httpx.Response:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        answer = httpx.request(
            method, server.url + path, content=content,  # type: ignore[arg-type]
            headers={**NPY, "Authorization": f"Bearer {key}", **named}, timeout=30,
        )  # fmt: skip
        answers.append(answer)
        return answer

    def fault(kind: str, seconds: float = 0.0) -> None:
        ask("POST", "/faults", json.dumps({"kind": kind, "seconds": seconds}), ADMIN,
            Content_Type="application/json")  # fmt: skip

    for path in ("/embed", "/v2/models/arithmetic/infer"):
        ask("POST", path, b"no array")
        ask("POST", path, _ROWS, WRONG)
        ask("GET", path)
    ask("POST", "/models/arithmetic/pin")  # 403
    ask("GET", f"/models/{KEY}")
    ask("GET", f"/{KEY}")
    ask("POST", f"/embed?api_key={KEY}", _ROWS)
    ask("POST", f"/embed?pooling={KEY}", _ROWS)
    ask("POST", f"/embed?model={KEY}", _ROWS)
    ask("POST", "/embed", _ROWS, Accept="text/html")
    ask("POST", "/embed", _late())  # 408
    ask("POST", "/models/arithmetic/pin", key=ADMIN)
    ask("POST", "/models/arithmetic/unload", key=ADMIN)  # 409
    ask("POST", "/models/arithmetic/unpin", key=ADMIN)
    ask("POST", "/embed", npy(np.zeros((9, 3, 8, 8), np.uint8)))  # 413
    ask("POST", "/embed", _ROWS, Content_Type="application/pickle")
    ask("POST", "/embed", _ROWS, Content_Encoding="br")
    ask("POST", "/embed?timeout=1e-9", _ROWS)
    fault("exception")
    ask("POST", "/embed", _ROWS)
    fault("hang", 1.5)
    crowd = [threading.Thread(target=ask, args=("POST", "/embed", _ROWS)) for _ in range(6)]
    for one in crowd:
        one.start()
    for one in crowd:
        one.join()
    fault("thread")
    ask("POST", "/embed", _ROWS)  # worker_failed
    ask("POST", "/models/arithmetic/unload", key=ADMIN)
    ask("POST", "/embed", _ROWS)  # not_ready
    ask("GET", "/status", X_Long="x" * 40_000)  # 431
    ask("GET", "/status")
    ask("GET", "/metrics")
    silent = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(CONNECTIONS)]
    ask("GET", "/status")  # too_many_connections
    for connection in silent:
        connection.close()
    time.sleep(0.2)
    with httpx.Client(timeout=60) as http:
        bad = http.build_request("BREW", server.url + "/embed", headers={"Authorization": KEY})
        answers.append(http.send(bad))
    return answers


def _late() -> Iterator[bytes]:
    yield b"x"
    threading.Event().wait(2)  # longer than the body timeout
    yield b"x"


def test_every_error_was_provoked(told: tuple[list[httpx.Response], str]) -> None:
    answers, _ = told
    kinds = {answer.headers.get("content-type", "").partition(";")[0] for answer in answers}
    contents = [a.json() for a in answers if a.headers.get("content-type") == "application/json"]
    errors = [content["error"] for content in contents if "error" in content]
    codes = {error["code"] for error in errors if isinstance(error, dict)}
    assert codes == {kind.code for kind in ERRORS} - {"draining"}
    assert "text/plain" in kinds  # the metrics


def test_no_answer_and_no_line_of_the_log_holds_a_key(
    told: tuple[list[httpx.Response], str],
) -> None:
    answers, log = told
    assert len(log.splitlines()) > len(answers) - 5, "the log was read"
    for answer in answers:
        echo = KEY in str(answer.request.url)  # told to nobody but its sender
        seen = answer.text + str(answer.headers)
        assert echo or KEY not in seen
        assert ADMIN not in seen
        assert WRONG not in seen
    for line in log.splitlines():
        assert not any(key in line for key in (KEY, ADMIN, WRONG)), line


def test_no_answer_holds_a_traceback_or_a_path(told: tuple[list[httpx.Response], str]) -> None:
    for answer in told[0]:
        assert "Traceback" not in answer.text
        assert "site-packages" not in answer.text
        assert str(Path(__file__).parent.parent.parent) not in answer.text
