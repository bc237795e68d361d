"""Documentation that fails when the code moves on."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from generate_docs import (
    CLI,
    OPENAPI,
    README,
    ROOT,
    SETTINGS,
    cli_with_commands,
    error_rows,
    openapi_text,
    page_with_settings,
)

from support.doc_blocks import pages
from vim_embed import __version__
from vim_embed.cli import FLAGS
from vim_embed.settings import Settings
from vim_embed.weights.catalogue import CATALOGUE
from vim_embed_client.cli.main import COMMANDS

# Where paths in the documentation begin.
SOURCES = (ROOT, ROOT / "service" / "vim_embed", ROOT / "client", ROOT / "client/vim_embed_client")
HTTP = (ROOT / "docs" / "http.md").read_text()


def _table(text: str, header: str) -> list[tuple[str, ...]]:
    body = text[text.index(header) :].split("\n\n", maxsplit=1)[0].splitlines()[2:]
    return [tuple(cell.strip() for cell in line.strip("|").split("|")) for line in body]


def test_settings_are_the_code_s() -> None:
    text = SETTINGS.read_text()
    assert page_with_settings(text) == text, "run `make docs`"


def test_openapi_is_the_code_s() -> None:
    assert OPENAPI.read_text() == openapi_text(), "run `make docs`"


def test_the_commands_are_the_code_s() -> None:
    text = CLI.read_text()
    assert cli_with_commands(text) == text, "run `make docs`"
    assert all(f"### `vim-embed {name}`\n" in text for name in COMMANDS)


def test_http_errors_are_the_code_s() -> None:
    documented = [row[:3] for row in _table(HTTP, "| status | code | retry | meaning |")]
    assert sorted(documented) == sorted(error_rows())


def test_http_parameters_are_the_code_s() -> None:
    documented = " ".join(row[0] for row in _table(HTTP, "| parameter | values | default |"))
    names = {p["name"] for p in _openapi_parameters()}
    assert set(re.findall(r"`(\w+)`", documented)) == names


def _openapi_parameters() -> list[dict[str, str]]:
    import json

    parameters: list[dict[str, str]] = json.loads(openapi_text())["paths"]["/embed"]["post"][
        "parameters"
    ]
    return parameters


def test_every_model_is_in_the_readme() -> None:
    text = README.read_text()
    assert all(f"`{name}`" in text for name in CATALOGUE)


def test_the_changelog_s_top_is_the_version() -> None:
    versions = re.findall(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert versions[0] == __version__


def test_make_targets_of_the_readme_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"^make (\w+)", README.read_text(), re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE)


def test_what_ci_runs_is_what_the_workflows_say() -> None:
    page = (ROOT / "docs" / "contributing.md").read_text()
    rows = _table(page, "| workflow | job | runs | what | limit, minutes |")
    documented = {
        (workflow.strip("`"), job.strip("`"), *re.findall(r"make ([\w-]+)", runs), limit)
        for workflow, job, runs, _, limit in rows
    }
    assert documented == set(_jobs_of_pull_requests())


def _jobs_of_pull_requests() -> list[tuple[str, ...]]:
    """Workflow, job, make targets and minutes, of each job that a pull request can start."""
    found = []
    for path in (ROOT / ".github" / "workflows").glob("*.yml"):
        workflow = yaml.load(path.read_text(), yaml.BaseLoader)  # which keeps `on` a text
        if "pull_request" not in workflow["on"]:
            continue
        for name, job in workflow["jobs"].items():
            if "if" not in job:
                commands = "\n".join(step.get("run", "") for step in job["steps"])
                targets = re.findall(r"^make ([\w-]+)", commands, re.MULTILINE)
                found.append((path.name, name, *targets, job["timeout-minutes"]))
    return found


@pytest.fixture(scope="module")
def serve_help() -> str:
    command = [sys.executable, "-m", "vim_embed.cli", "serve", "--help"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize("name", Settings.model_fields)
def test_every_setting_reads_its_environment_variable(
    name: str, serve_help: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    field = Settings.model_fields[name]
    other: dict[type, str] = {bool: "true", int: "7", float: "7.5"}
    choices = {"dtype": "float16", "log_level": "debug", "log_format": "json"}
    choices |= {"client_share": "0.5", "keep_neighbours": "0.5"}
    value = choices.get(name) or other.get(type(field.default), "a,b")
    monkeypatch.setenv(f"VIM_EMBED_{name.upper()}", value)
    read = getattr(Settings(), name)
    assert read != field.default
    assert FLAGS.get(name, "--" + name.replace("_", "-")) in serve_help


def test_the_adapters_environment_is_documented() -> None:
    page = (ROOT / "docs" / "platonic-universe.md").read_text()
    documented = [row[0] for row in _table(page, "| environment | default | meaning")]
    client = ROOT / "client" / "vim_embed_client"
    sources = [client / "options.py", *(client / "platonic").rglob("*.py")]
    read = {
        name
        for path in sources
        for name in re.findall(r'environ\.get\("(VIM_EMBED_\w+)"', path.read_text())
    }
    assert {name.strip("`") for name in documented} == read


def test_the_index_leads_to_every_page() -> None:
    index = (ROOT / "docs" / "README.md").read_text()
    pages = {path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")}
    missing = [page for page in pages - {"README.md"} if f"({page})" not in index]
    assert not missing, "add them to docs/README.md"


@pytest.mark.parametrize("page", pages(ROOT), ids=lambda path: path.name)
def test_links_within_the_documentation_lead_somewhere(page: Path) -> None:
    for target, anchor in re.findall(r"\]\((?!https?:)([^)#\s]*)#?([^)\s]*)\)", page.read_text()):
        path = (page.parent / target).resolve() if target else page
        assert path.exists(), f"{page.name} links to {target}"
        if anchor and path.suffix == ".md":
            assert anchor in _anchors(path.read_text()), f"{page.name} links to {target}#{anchor}"


@pytest.mark.parametrize("page", pages(ROOT), ids=lambda path: path.name)
def test_names_are_in_the_files_that_the_documentation_says(page: Path) -> None:
    """Such as `SMALL` of `tests/support/encoders.py`: defined there, not imported."""
    for name, path in re.findall(r"`(\w+)` (?:of|in) `((?:\w+/)+\w+\.py)`", page.read_text()):
        found = [file for root in SOURCES if (file := root / path).exists()]
        assert found, f"{page.name} names {path}"
        definition = rf"^ *(?:async def |def |class )?{name}\b *(?:[:=(\[]|$)"
        assert re.search(definition, found[0].read_text(), re.MULTILINE), f"{name} of {path}"


@pytest.mark.parametrize("page", pages(ROOT), ids=lambda path: path.name)
def test_lists_are_written_as_the_site_reads_them(page: Path) -> None:
    """What belongs to an item stands four spaces in, and ends with an empty line."""
    prose = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    assert not re.findall(r"^ {1,3}\S.*", prose, re.MULTILINE)
    assert not re.findall(r"^ {4}(?!- |\d+\. )\S.*\n(?:- |\d+\. ).*", prose, re.MULTILINE)


def _anchors(text: str) -> set[str]:
    """The names under which GitHub's headings can be reached."""
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
