"""`vim-embed attach`: on both layouts of the host, and on layouts that it must refuse."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
import venv
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from client.fake_service import FakeService
from client.fake_service import serve as serve_fake
from vim_embed_client.cli.main import cli, run
from vim_embed_client.errors import ConfigurationError
from vim_embed_client.platonic import ALIASES, attach
from vim_embed_client.platonic.interpreter import Interpreter, ask, find
from vim_embed_client.platonic.source_edits import with_tables

INIT = """\
from platonic.registry import get_adapter, register_adapter, list_adapters

from platonic import hf
from platonic import astropt

__all__ = ["get_adapter"]
"""
EXPERIMENTS = '''\
def run_experiment(model_alias, mode):
    """Grüße, \x0c as a form feed is no line end."""
    model_map = {
        "vit": (
            ["base"],
            ["google/vit-base"],
        ),
        "dino": (["small"], [f"facebook/{s}" for s in ["small"]]),  # a comment
    }
    return model_map[model_alias]
'''
LAYERWISE = 'MODEL_MAP = {\n    "vit": (["base"], ["google/vit-base"]),\n}\n'
PHYSICS = LAYERWISE.replace("MODEL_MAP", "PHYSICS_MODEL_MAP")
BENCHMARK = """\
def run_benchmark(config):
    model_map = {
        "vit": {
            "base": "google/vit-base",
        },
    }
    return model_map
"""
RELEASE = {"models/__init__.py": INIT, "experiments.py": EXPERIMENTS}
HEAD = RELEASE | {
    "experiments_layerwise.py": LAYERWISE,
    "physics_experiment.py": PHYSICS,
    "benchmark.py": BENCHMARK,
}


@pytest.fixture(scope="module")
def answer() -> Interpreter:
    """What the Python says that is guessed for a checkout without an environment of its own."""
    return ask(Path(os.devnull))


@pytest.fixture(autouse=True)
def asked_once(monkeypatch: pytest.MonkeyPatch, answer: Interpreter) -> None:
    """To start that Python is most of what a command costs, and all of them ask the same."""

    def answered(package: Path, python: Path | None = None) -> Interpreter:
        return answer if python is None and not find(package)[1] else ask(package, python)

    monkeypatch.setattr("vim_embed_client.cli.attach.ask", answered)


def checkout(folder: Path, files: dict[str, str], *, line_end: str = "\n") -> Path:
    """A source tree of the host; gives the folder of its package."""
    package = folder / "src" / "pu"
    for name, text in files.items():
        path = package / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text.replace("\n", line_end).encode())
    return package


def contents(package: Path) -> dict[str, bytes]:
    files = (path for path in package.rglob("*") if path.is_file())
    return {path.relative_to(package).as_posix(): path.read_bytes() for path in files}


def invoke(*arguments: str | Path) -> Result:
    return CliRunner().invoke(cli, ["attach", *map(str, arguments)], catch_exceptions=False)


@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
@pytest.mark.parametrize("files", [RELEASE, HEAD])
def test_attached_once_twice_and_undone(
    tmp_path: Path, files: dict[str, str], line_end: str
) -> None:
    package = checkout(tmp_path, files, line_end=line_end)
    before = contents(package)

    assert invoke(tmp_path, "--check").exit_code == 1
    assert contents(package) == before
    assert invoke(tmp_path).exit_code == 0
    attached = contents(package)
    assert set(attached) == set(before)
    assert all(attached[name] != before[name] for name in before)
    assert all(text.count(b"\n") == text.count(line_end.encode()) for text in attached.values())
    assert invoke(tmp_path, "--check").exit_code == 0
    assert "as before" in invoke(tmp_path).output
    assert contents(package) == attached

    assert invoke(package, "--undo").exit_code == 0
    assert contents(package) == before


def test_every_table_maps_every_alias(tmp_path: Path) -> None:
    package = checkout(tmp_path, HEAD)
    attach.write(attach.plan(package))
    scope: dict[str, object] = {}
    exec((package / "experiments_layerwise.py").read_text(), scope)
    exec((package / "physics_experiment.py").read_text(), scope)
    exec((package / "benchmark.py").read_text(), scope)
    exec((package / "experiments.py").read_text(), scope)
    sizes = ["tiny", "small", "base"]
    for alias, names in ALIASES.items():
        expected = (sizes, list(names))
        assert scope["MODEL_MAP"][alias] == expected  # type: ignore[index]
        assert scope["PHYSICS_MODEL_MAP"][alias] == expected  # type: ignore[index]
        assert scope["run_experiment"](alias, "jwst") == expected  # type: ignore[operator]
        assert scope["run_benchmark"](None)[alias] == dict(zip(sizes, names, strict=True))  # type: ignore[operator]


def aliases_of(package: Path) -> dict[str, Any]:
    """What run_experiment of an attached package maps each alias to."""
    scope: dict[str, Any] = {}
    source = (package / "experiments.py").read_text()
    exec(source.replace("return model_map[model_alias]", "return model_map"), scope)
    table: dict[str, Any] = scope["run_experiment"]("", "")
    return table


def registered(package: Path) -> Any:
    """What the attached models/__init__.py gives register_aliases beside the host's function."""
    calls = [
        node
        for node in ast.walk(ast.parse((package / "models" / "__init__.py").read_text()))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "register_aliases"
    ]
    return ast.literal_eval(calls[0].args[1]) if calls[0].args[1:] else {}


@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
def test_twins_have_the_host_s_own_sizes_and_names(tmp_path: Path, line_end: str) -> None:
    table = EXPERIMENTS.replace('["small"]', '["small", "b-plus"]')
    package = checkout(tmp_path, HEAD | {"experiments.py": table}, line_end=line_end)
    before = contents(package)
    assert invoke(tmp_path, "--models", "dino,vit").exit_code == 0
    attached = contents(package)
    assert all(text.count(b"\n") == text.count(line_end.encode()) for text in attached.values())
    dino = {"small": "facebook/small", "b-plus": "facebook/b-plus"}
    assert registered(package) == {"vit": {"base": "google/vit-base"}, "dino": dino}
    found = aliases_of(package)
    assert found["dino-remote"] == found["dino"] == (list(dino), list(dino.values()))
    assert found["dino-remote-b-plus"] == (["b-plus"], ["facebook/b-plus"])
    assert found["vit-remote"] == found["vit-remote-base"] == found["vit"]
    assert found["vim-remote-tiny"] == (["tiny"], ["hustvl/Vim-tiny-midclstok"])
    scope: dict[str, Any] = {}
    exec(attached["benchmark.py"].decode(), scope)
    benchmark = scope["run_benchmark"](None)
    assert benchmark["vit-remote-base"] == benchmark["vit-remote"] == {"base": "google/vit-base"}
    assert "dino-remote" not in benchmark  # a table without the model gets no twin of it
    assert invoke(tmp_path, "--undo").exit_code == 0
    assert contents(package) == before


def test_twins_stay_until_others_are_asked_for(tmp_path: Path) -> None:
    package = checkout(tmp_path, HEAD)
    assert invoke(tmp_path, "--models", "dino").exit_code == 0
    attached = contents(package)
    for flags in ([], ["--check"], ["--models", "dino"], ["--models", "dino", "--check"]):
        assert invoke(tmp_path, *flags).exit_code == 0
        assert contents(package) == attached
    assert "vim-remote-proxy, dino-remote" in invoke(tmp_path, "--check").output
    assert json.loads(invoke(tmp_path, "--json").output)["aliases"] == [*ALIASES, "dino-remote"]
    assert invoke(tmp_path, "--models", "vit", "--check").exit_code == 1
    assert invoke(tmp_path, "--models", "all").exit_code == 0
    assert registered(package).keys() == {"vit", "dino"}
    assert invoke(tmp_path, "--models", "none").exit_code == 0
    assert registered(package) == {}
    assert aliases_of(package).keys().isdisjoint({"dino-remote", "vit-remote"})


def test_a_model_without_a_twin_is_refused(tmp_path: Path) -> None:
    package = checkout(tmp_path, HEAD)
    before = contents(package)
    with pytest.raises(
        ConfigurationError, match=r"no remote twin of astropt, clip: .* has dino, v"
    ):
        invoke(tmp_path, "--models", "clip,astropt")
    assert contents(package) == before
    assert run(["attach", str(tmp_path), "--models", ","]) == 2
    assert run(["attach", str(tmp_path), "--models", "dino", "--undo"]) == 2


@pytest.mark.parametrize(
    "entry",
    ["(sizes(), names())", '(["small", "base"], ["facebook/small"])', "Entry()", '("a", __file__)'],
)
def test_an_entry_that_cannot_be_read_has_no_twin_and_harms_no_other(
    tmp_path: Path, entry: str
) -> None:
    own = '(["small"], [f"facebook/{s}" for s in ["small"]])'
    package = checkout(tmp_path, HEAD | {"experiments.py": EXPERIMENTS.replace(own, entry)})
    with pytest.raises(ConfigurationError, match="no remote twin of dino"):
        invoke(tmp_path, "--models", "dino")
    assert invoke(tmp_path, "--models", "all").exit_code == 0
    assert registered(package).keys() == {"vit"}


def test_a_foreign_twin_is_refused_by_name(tmp_path: Path) -> None:
    foreign = "from .registry import register_adapter\nregister_adapter('dino-remote', object)\n"
    package = checkout(tmp_path, HEAD | {"models/own.py": foreign})
    assert invoke(tmp_path).exit_code == 0
    attached = contents(package)
    with pytest.raises(ConfigurationError, match="line 2 registers an adapter 'dino-remote' of"):
        invoke(tmp_path, "--models", "dino")
    assert contents(package) == attached


def test_the_diff_is_a_patch_that_git_applies(tmp_path: Path) -> None:
    package = checkout(tmp_path, HEAD)
    before = contents(package)
    patch = invoke(tmp_path, "--diff").output
    assert contents(package) == before
    subprocess.run(["git", "apply", "-"], input=patch.encode(), cwd=tmp_path, check=True)
    patched = contents(package)
    assert invoke(tmp_path, "--check").exit_code == 0
    undo = invoke(tmp_path, "--undo", "--diff").output
    assert contents(package) == patched
    subprocess.run(["git", "apply", "-"], input=undo.encode(), cwd=tmp_path, check=True)
    assert contents(package) == before


def test_a_stale_entry_is_renewed() -> None:
    current = with_tables(EXPERIMENTS)
    stale = current.replace("hustvl/Vim-tiny-midclstok", "hustvl/Vim-old")
    assert stale != current
    assert with_tables(stale) == current


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("experiments.py", "def run_experiment(): ...\n", "no model table"),
        ("experiments.py", EXPERIMENTS.replace('"vit": (', '"vit": Entry('), "holds neither"),
        ("experiments.py", EXPERIMENTS.replace("model_map = {", "model_map = dict({"), "not recog"),
        ("experiments.py", 'model_map = {"vit": (["a"], ["b"])}\n', "a brace on a line of its own"),
        ("experiments.py", EXPERIMENTS.replace("]),  # a", "])  # a"), "end with a comma"),
        (
            "experiments.py",
            EXPERIMENTS.replace('"dino": (', '"vim": ([], []), "dino": ('),
            "line 8 has a model 'vim' that is not vim-embed's",
        ),
        ("experiments_layerwise.py", "MODELS = load()\n", "no model table"),
        ("benchmark.py", "def broken(:\n", "invalid syntax"),
        ("models/__init__.py", "from . import hf\n", "register_adapter is not imported"),
        ("models/__init__.py", INIT.rstrip("\n"), "last line"),
        (
            "models/__init__.py",
            INIT + "from vim_embed_client.platonic import register_aliases\n",
            "in another way",
        ),
    ],
)
def test_an_unknown_layout_is_refused_whole(
    tmp_path: Path, name: str, text: str, message: str
) -> None:
    package = checkout(tmp_path, HEAD | {name: text})
    before = contents(package)
    with pytest.raises(ConfigurationError, match=message) as caught:
        invoke(tmp_path)
    assert str(package / name) in str(caught.value)
    assert "Nothing was changed" in str(caught.value)
    assert contents(package) == before


def test_a_file_that_cannot_be_written_leaves_all_as_they_were(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = checkout(tmp_path, HEAD)
    before = contents(package)
    replaced: list[str] = []
    real = os.replace

    def replace(source: str, target: Path) -> None:
        if target.name == "physics_experiment.py":
            raise PermissionError(13, "Permission denied")
        replaced.append(target.name)
        real(source, target)

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(ConfigurationError, match="Permission denied"):
        invoke(tmp_path)
    assert "experiments.py" in replaced
    assert contents(package) == before


def test_the_file_that_cannot_be_written_is_the_one_that_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = checkout(tmp_path, HEAD)
    real = os.replace

    def replace(source: str, target: Path) -> None:
        if target.name == "physics_experiment.py":
            raise OSError(28, "No space left on device")
        real(source, target)

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(ConfigurationError, match="Nothing was changed") as caught:
        invoke(tmp_path)
    assert f"cannot write {package / 'physics_experiment.py'}: No space" in str(caught.value)


def test_files_that_cannot_be_put_back_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = checkout(tmp_path, RELEASE)
    real = os.replace
    written: list[Path] = []

    def replace(source: str, target: Path) -> None:
        if written:
            raise OSError(28, "No space left on device")
        written.append(target)
        real(source, target)

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(ConfigurationError, match="put them back with --undo") as caught:
        invoke(tmp_path)
    assert f"cannot write {package / 'experiments.py'}" in str(caught.value)
    assert f"{package / 'models/__init__.py'} stay changed" in str(caught.value)


OWN = """\
        "vim": (
            ["s"],  # the fork's own
            ["fork/vim"],
        ),
"""
FORK = RELEASE | {
    "experiments.py": EXPERIMENTS.replace("    }\n    return", OWN + "    }\n    return")
}
FORK_ADAPTER = RELEASE | {
    "models/own.py": "from .registry import register_adapter\nregister_adapter('vim', object)\n"
}
FORK_AT_HOME = RELEASE | {"models/__init__.py": INIT + "register_adapter('vim', object)\n"}


@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
@pytest.mark.parametrize(
    ("files", "message"),
    [
        (FORK, r"experiments.py: line 9 has a model 'vim' that is not vim-embed's"),
        (FORK_ADAPTER, r"models/own.py: line 2 registers an adapter 'vim' of its own"),
        (FORK_AT_HOME, r"models/__init__.py: line 7 registers an adapter 'vim' of its own"),
    ],
)
def test_a_foreign_alias_is_refused_by_name_and_only_put_aside_when_asked(
    tmp_path: Path, files: dict[str, str], message: str, line_end: str
) -> None:
    package = checkout(tmp_path, files, line_end=line_end)
    before = contents(package)
    for flags in ([], ["--check"], ["--diff"]):
        with pytest.raises(ConfigurationError, match=message) as caught:
            invoke(tmp_path, *flags)
        assert "--replace" in str(caught.value)
    assert invoke(tmp_path, "--undo").exit_code == 0
    assert contents(package) == before

    assert invoke(tmp_path, "--replace").exit_code == 0
    attached = contents(package)
    scope: dict[str, Any] = {}
    exec(attached["experiments.py"].decode(), scope)
    assert scope["run_experiment"]("vim", "jwst") == (
        ["tiny", "small", "base"],
        list(ALIASES["vim"]),
    )
    init = attached["models/__init__.py"].decode()
    assert init.rindex("register_aliases(register_adapter)") > init.find("register_adapter('vim'")
    invoke(tmp_path, "--replace")
    assert contents(package) == attached
    assert invoke(tmp_path, "--undo").exit_code == 0
    assert contents(package) == before


def test_a_replaced_alias_stays_replaced_without_being_asked_again(tmp_path: Path) -> None:
    package = checkout(tmp_path, FORK)
    invoke(tmp_path, "--replace")
    attached = contents(package)
    assert b'# vim-embed replaced:             ["fork/vim"],\n' in attached["experiments.py"]
    assert invoke(tmp_path).exit_code == 0
    assert invoke(tmp_path, "--check").exit_code == 0
    assert contents(package) == attached


def test_what_upstream_has_of_ours_by_itself_is_left_alone(tmp_path: Path) -> None:
    ours = with_tables(EXPERIMENTS).splitlines(keepends=True)
    merged = "".join(line for line in ours if "# vim-embed: " not in line)
    init = INIT + "from vim_embed_client.platonic import register_aliases\n"
    init += "register_aliases(register_adapter)\n"
    package = checkout(tmp_path, {"models/__init__.py": init, "experiments.py": merged})
    before = contents(package)
    assert "as before" in invoke(tmp_path).output
    assert invoke(tmp_path, "--check").exit_code == 0
    assert invoke(tmp_path, "--undo").exit_code == 0
    assert contents(package) == before


@pytest.mark.parametrize("mark", ["# vim-embed: begin", "# vim-embed: end"])
def test_a_mark_without_the_other_is_refused(tmp_path: Path, mark: str) -> None:
    package = checkout(tmp_path, RELEASE)
    invoke(tmp_path)
    path = package / "experiments.py"
    path.write_text("".join(x for x in path.read_text().splitlines(True) if mark not in x))
    for flags in ([], ["--undo"]):
        with pytest.raises(ConfigurationError, match="without"):
            invoke(tmp_path, *flags)


def test_modes_are_kept(tmp_path: Path) -> None:
    package = checkout(tmp_path, RELEASE)
    (package / "experiments.py").chmod(0o640)
    invoke(tmp_path)
    assert (package / "experiments.py").stat().st_mode & 0o777 == 0o640


def test_a_folder_without_the_host(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["attach", str(tmp_path)]) == 2
    assert "holds no platonic-universe" in capsys.readouterr().err


def test_check_and_undo_exclude_each_other(tmp_path: Path) -> None:
    assert run(["attach", str(tmp_path), "--check", "--undo"]) == 2


def test_as_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkout(tmp_path, RELEASE)

    def told(*flags: str, code: int = 0) -> Any:
        assert run(["attach", str(tmp_path), "--json", *flags]) == code
        return json.loads(capsys.readouterr().out)

    before = told("--check", code=1)
    assert (before["attached"], before["changed"]) == (False, False)
    assert told("--diff")["diff"].startswith("--- a/")
    done = told()
    assert (done["attached"], done["changed"], done["files"]) == (True, True, before["files"])
    assert told("--check")["attached"] is True
    assert told("--undo", "--diff")["attached"] is True
    assert told("--undo")["attached"] is False


def test_without_the_client_the_host_still_imports() -> None:
    from vim_embed_client.platonic.source_edits import with_registration

    tree = ast.parse(with_registration(INIT))
    guard = next(node for node in tree.body if isinstance(node, ast.Try))
    assert isinstance(guard.handlers[0].type, ast.Name)
    assert guard.handlers[0].type.id == "ModuleNotFoundError"


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
