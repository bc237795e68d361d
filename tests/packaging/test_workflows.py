"""The workflows: linted, pinned, and made of make targets that everybody can run by hand."""

from __future__ import annotations

import itertools
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from compatibility import TESTS

ROOT = Path(__file__).parents[2]
WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))
TARGETS = set(re.findall(r"^([a-z][\w-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE))


def steps(path: Path) -> Iterator[dict[str, Any]]:
    for job in yaml.safe_load(path.read_text())["jobs"].values():
        yield from job["steps"]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_every_command_is_a_make_target(path: Path) -> None:
    commands = [step["run"] for step in steps(path) if "run" in step]
    for command in commands:
        found = re.fullmatch(r"make ([\w-]+)( [A-Z_]+=\S+)*", command)
        assert found, f"{path.name}: {command!r} is no make target"
        assert found[1] in TARGETS, f"{path.name}: the Makefile has no {found[1]}"


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_actions_are_pinned_and_rights_are_given_by_job(path: Path) -> None:
    text = path.read_text()
    for action in re.findall(r"uses: (.*)", text):
        assert re.fullmatch(r"[\w./-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", action), action
    assert yaml.safe_load(text)["permissions"] == {}


def test_the_python_versions_are_those_of_the_classifiers() -> None:
    workflow = yaml.safe_load((ROOT / ".github/workflows/test.yml").read_text())
    tested = workflow["jobs"]["unit"]["strategy"]["matrix"]["python"]
    project = (ROOT / "pyproject.toml").read_text()
    assert re.findall(r"Python :: (3\.\d+)", project) == tested


def test_the_combinations_are_those_of_the_script() -> None:
    workflow = yaml.safe_load((ROOT / ".github/workflows/test.yml").read_text())
    matrix = workflow["jobs"]["compatibility"]["strategy"]["matrix"]["combination"]
    command = [sys.executable, "scripts/compatibility.py", "--list"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert [line.partition(":")[0] for line in listed.splitlines()] == matrix


def test_the_tests_of_other_versions_are_there() -> None:
    """Those that `make test-lowest` and `make compatibility` name: a moved file is named anew."""
    recipe = subprocess.run(
        ["make", "--dry-run", "test-lowest"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    lowest = [word for word in recipe.split() if word.startswith("tests/")]
    named = {*(word.partition("::")[0] for word in lowest), *itertools.chain(*TESTS.values())}
    assert len(lowest) > 20
    assert [name for name in sorted(named) if not (ROOT / name).exists()] == []


def test_zizmor_finds_nothing() -> None:
    zizmor = shutil.which("zizmor", path=str(Path(sys.executable).parent))
    if zizmor is None:
        pytest.skip("zizmor is not installed: pip install -e '.[dev]'")
    done = subprocess.run(
        [zizmor, "--offline", "--no-progress", ".github"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout
