"""`vim-embed attach`: on both layouts of the host, and on layouts that it must refuse."""

from __future__ import annotations

import ast
import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from vim_embed_client.cli.main import run
from vim_embed_client.errors import ConfigurationError
from vim_embed_client.platonic import ALIASES, attach
from vim_embed_client.platonic.source_edits import with_tables

from .checkouts import EXPERIMENTS, HEAD, INIT, RELEASE, checkout, contents, invoke

pytestmark = pytest.mark.usefixtures("asked_once")


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
