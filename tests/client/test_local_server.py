"""A service of one's own: started, watched, stopped."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest

from vim_embed_client import (
    Client,
    LocalServer,
    LocalServerError,
    ServerUnreachableError,
    ServiceNotInstalledError,
    local_server,
)

ROOT = str(Path(__file__).parents[2])


def start(model: str, **options: Any) -> LocalServer:
    """A LocalServer around tests/client/fake_server.py."""
    command = (sys.executable, "-m", "tests.client.fake_server", "serve")
    return LocalServer([model], command=command, env=os.environ | {"PYTHONPATH": ROOT}, **options)


def test_it_serves_while_it_is_entered_and_not_after() -> None:
    with start("good", random_weights=True, args=["--device", "cpu"]) as server:
        with Client(server.url) as client:
            assert client.ready()["status"] == "ready"
        assert "flags: good --random-weights --device cpu" in server.log()
    with (
        Client(server.url, max_retries=0) as client,
        pytest.raises(ServerUnreachableError),
    ):
        client.live()


def test_it_waits_until_the_models_are_loaded() -> None:
    waited: list[float] = []
    with start("slow", on_wait=waited.append) as server, Client(server.url) as client:
        assert client.models()["models"][0]["state"] == "ready"
    assert waited == sorted(waited)
    assert waited


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("dies", r"(?s)stopped while starting \(exit code 1\).*no weights anywhere"),
        ("fails", r"cannot load vim-tiny \(no such file\)"),
    ],
)
def test_a_service_that_cannot_start_is_reported_with_its_log(model: str, message: str) -> None:
    with pytest.raises(LocalServerError, match=message), start(model):
        pass


def test_waiting_is_bounded() -> None:
    with (
        pytest.raises(LocalServerError, match="not ready within"),
        start("slow", ready_timeout=0.0),
    ):
        pass


def test_a_service_that_does_not_obey_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_server, "_STOP_S", 0.2)
    with start("deaf") as server:
        pass
    assert server._process.returncode == -9


def test_missing_libraries_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_server, "_NEEDED", ("json", "no_such_library"))
    with pytest.raises(ServiceNotInstalledError, match=r"no_such_library.*vim-embed\[service\]"):
        LocalServer()
