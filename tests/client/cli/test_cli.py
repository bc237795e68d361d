"""The other commands, lazy loading, and exit codes."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from typing import Any

import click
import pytest

from client.fake_service import FakeService
from vim_embed_client.cli import main as cli
from vim_embed_client.cli.main import EXIT_CODES, Lazy, run


def test_models(
    url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["models", "--url", url]) == 0
    shown = capsys.readouterr().out
    assert "vim-tiny" in shown
    assert "(default)" in shown
    monkeypatch.setenv("COLUMNS", "60")
    assert run(["models", "--url", url]) == 0
    assert "…" not in capsys.readouterr().out  # narrow, and nothing is cut off


def test_models_as_json(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["models", "--url", url, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["default"] == "vim-tiny"


def test_the_url_comes_from_the_environment(
    url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("VIM_EMBED_URL", url + "/")
    assert run(["health"]) == 0
    assert f"{url} is ready: vim-tiny ready" in capsys.readouterr().out


def test_health_as_json(url: str, service: FakeService, capsys: Any) -> None:
    assert run(["health", "--url", url, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["models"] == {"vim-tiny": "ready"}
    service.ready = False
    assert run(["health", "--url", url, "--json"]) == 1
    assert json.loads(capsys.readouterr().out) == {
        "status": "not_ready",
        "message": "vim-tiny is still loading",
    }


def test_health_of_a_loading_service(url: str, service: FakeService, capsys: Any) -> None:
    service.ready = False
    assert run(["health", "--url", url]) == 1
    assert "is not ready: vim-tiny is still loading" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["models", "health"])
def test_no_service_is_exit_code_3(command: str, capsys: Any) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        assert run([command, "--url", f"http://127.0.0.1:{unused.getsockname()[1]}"]) == 3
    assert "vim-embed-server serve" in capsys.readouterr().err


def test_something_else_behind_the_url_is_exit_code_1(url: str, capsys: Any) -> None:
    assert run(["models", "--url", url + "/elsewhere"]) == 1
    assert "HTTP 404" in capsys.readouterr().err


@pytest.mark.parametrize(
    "args", [["bogus"], ["models", "--bogus"], ["models", "--url", "nonsense"]]
)
def test_wrong_usage_is_exit_code_2(args: list[str], capsys: Any) -> None:
    assert run(args) == 2
    assert "Error: " in capsys.readouterr().err


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--version"]) == 0
    assert capsys.readouterr().out.startswith("vim-embed, version ")


def test_help_lists_commands_and_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--help"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert all(f"{code} {meaning}" in shown for code, meaning in EXIT_CODES.items())
    assert all(f"{name} {lazy.help}" in shown for name, lazy in cli.COMMANDS.items())


@pytest.mark.parametrize("name", ["embed", "models", "health", "bench"])
def test_listed_help_is_the_commands_own(name: str) -> None:
    command = cli.cli.get_command(click.Context(cli.cli), name)
    assert command is not None
    assert (command.help or "").startswith(cli.COMMANDS[name].help)


def test_help_imports_no_command() -> None:
    script = (
        "import sys; from vim_embed_client.cli.main import run; run(['--help']);"
        "sys.exit(bool({'matplotlib', 'scipy', 'pyarrow', 'torch', 'vim_embed_client.cli.bench'}"
        " & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", script], capture_output=True).returncode == 0


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    lazy = Lazy("info:models", "Shown.", "demo")
    monkeypatch.setitem(cli.COMMANDS, "demo", lazy)
    monkeypatch.setitem(sys.modules, "rich.table", None)
    monkeypatch.delitem(sys.modules, "vim_embed_client.cli.info", raising=False)
    assert run(["demo"]) == 2
    assert 'needs rich.table: pip install "vim-embed[demo]"' in capsys.readouterr().err


def test_a_reader_that_leaves_is_no_traceback(url: str) -> None:
    script = f"{sys.executable} -m vim_embed_client.cli.main models --json --url {url}"
    shell = subprocess.run(
        ["bash", "-c", f"{script} | head -c 1"], capture_output=True, check=True, text=True
    )
    assert "Traceback" not in shell.stderr
