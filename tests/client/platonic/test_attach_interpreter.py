"""What `vim-embed attach` asks the Python that runs the host, and the service."""

from __future__ import annotations

import json
import os
import sys
import venv
from importlib.util import find_spec
from pathlib import Path

import pytest

from client.fake_service import FakeService
from client.fake_service import serve as serve_fake
from vim_embed_client.cli.main import run
from vim_embed_client.platonic.interpreter import Interpreter, ask, find

from .checkouts import RELEASE, checkout, invoke

pytestmark = pytest.mark.usefixtures("asked_once")


def installed() -> Path:
    spec = find_spec("pu")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent


def environment_with(folder: Path, files: dict[str, str], **stubs: str) -> Path:
    """A Python environment with the host in it and nothing else; gives the host's package.

    stubs: name -> version of distributions that it is to have.
    """
    venv.create(folder, with_pip=False, symlinks=True)
    (site,) = folder.glob("lib/python3*/site-packages")
    for name, text in files.items():
        path = site / "pu" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    if files:
        (site / "pu" / "__init__.py").touch()
    for name, version in stubs.items():
        (site / f"{name}-{version}.dist-info").mkdir()
        (site / f"{name}-{version}.dist-info" / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        )
    return site / "pu"


def test_the_target_s_own_python_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    here = os.environ.get("PYTHONPATH", "")
    monkeypatch.delenv("PYTHONPATH", raising=False)
    package = environment_with(tmp_path / "env", RELEASE, polars="2.0.1")
    python = next((tmp_path / "env" / "bin").glob("python3.*"))
    assert find(package) == (python, True)
    assert run(["attach", str(package)]) == 0
    said = capsys.readouterr()
    assert f"But {python} runs this platonic-universe and has no usable vim-embed" in said.err
    assert "a run ends with KeyError" in said.err
    assert "polars 2.0.1: both versions of platonic-universe" in said.err
    assert run(["attach", str(package), "--check"]) == 1
    said = capsys.readouterr()
    assert "knows vim, vim-proxy" in said.out
    assert "No module named 'vim_embed_client'" in said.out
    assert run(["attach", str(package), "--check", "--json"]) == 1
    told = json.loads(capsys.readouterr().out)
    assert told["attached"] is True
    assert len(told["problems"]) == 2
    monkeypatch.setenv("PYTHONPATH", here)
    assert run(["attach", str(package), "--python", sys.executable, "--check"]) == 1
    assert f"imports platonic-universe from {installed()}, not" in capsys.readouterr().out


def test_a_python_that_imports_another_host_is_named(tmp_path: Path) -> None:
    package = environment_with(tmp_path / "env", RELEASE)
    python, _ = find(package)
    assert ask(package).pu == str(package)
    other = checkout(tmp_path / "other", RELEASE)
    (problem,) = Interpreter(python=python, pu=str(package)).problems(other)
    assert f"{python} imports platonic-universe from {package}, not {other}: attach" in problem
    assert Interpreter(python=python, sure=False, pu=str(package)).problems(other) == []


def test_a_checkout_s_own_environment_is_asked(tmp_path: Path) -> None:
    package = checkout(tmp_path, RELEASE)
    assert find(package)[1] is False
    environment_with(tmp_path / ".venv", {})
    assert find(package) == (tmp_path / ".venv" / "bin" / "python", True)


@pytest.mark.parametrize(
    ("script", "message"),
    [("exit 3", "it failed"), ("echo no JSON", "cannot be asked"), ("exec /nowhere", "nowhere")],
)
def test_a_python_that_cannot_be_asked_is_named(tmp_path: Path, script: str, message: str) -> None:
    package = checkout(tmp_path, RELEASE)
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\n{script}\n")
    python.chmod(0o755)
    (problem,) = ask(package, python).problems(package)
    assert message in problem


def test_sizes_that_a_running_service_lacks_are_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkout(tmp_path, RELEASE)
    with serve_fake(FakeService().app()) as url:
        monkeypatch.setenv("VIM_EMBED_URL", url)
        told = invoke(tmp_path, "--json")
    (problem,) = json.loads(told.output)["problems"]
    assert problem.startswith(f"{url} lacks hustvl/Vim-small-midclstok, hustvl/Vim-base-midclstok")
    assert "--model vim-remote would stop there" in problem
