"""docs/comparison.md: each cell of ours leads to a test that is there."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
from generate_docs import ROOT

PAGE = ROOT / "docs" / "comparison.md"
_LINK = re.compile(r"\]\((\.\./tests/[^)#]+)(?:#([^)]+))?\)")
TEXT = PAGE.read_text()
LINKS = sorted({(match[1], match[2] or "") for match in _LINK.finditer(TEXT)})


def rows() -> list[list[str]]:
    """The cells of each line of the table, without the head."""
    lines = [line for line in TEXT.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines][1:]


def names_in(path: Path) -> set[str]:
    """The names of the test functions of a file."""
    functions = [
        node
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    return {function.name for function in functions if function.name.startswith("test_")}


@pytest.mark.parametrize(("file", "test"), LINKS)
def test_links_lead_to_tests(file: str, test: str) -> None:
    path = (PAGE.parent / file).resolve()
    assert path.is_relative_to(ROOT / "tests")
    assert path.name.startswith("test_")
    assert path.is_file()
    found = names_in(path)
    assert test in found if test else found, f"{file} has no {test}: {sorted(found)}"


def test_each_cell_of_ours_is_linked_to_a_test() -> None:
    assert len(rows()) > 10
    for row in rows():
        assert len(row) == 7, row
        assert _LINK.search(row[1]), f"no test is linked for {row[0]!r}"
        assert all(row), f"an empty cell for {row[0]!r}"


def test_a_test_that_is_not_there_is_found() -> None:
    assert "test_no_such_thing" not in names_in(Path(__file__))
    assert "test_links_lead_to_tests" in names_in(Path(__file__))
