"""The search field of the documentation site, in a real browser."""

from __future__ import annotations

from pathlib import Path

import pytest

from .conftest import Browser

SCRIPT = (Path(__file__).parents[2] / "docs" / "search.js").read_text()


@pytest.mark.parametrize(
    ("typed", "asked"),
    [
        ("--idle-unload", "idle-unload"),
        ("serve --api-keys -k", "serve api-keys k"),
        ("cut-outs - or --", "cut-outs - or --"),
    ],
)
def test_dashes_before_a_word_are_taken_off(
    browser: Browser, tmp_path: Path, typed: str, asked: str
) -> None:
    page = tmp_path / "page.html"
    page.write_text(f'<input class="md-search__input"><script>{SCRIPT}</script>')
    browser.open(page.as_uri())
    field = browser.find("input")
    field.send_keys(typed)
    assert field.get_property("value") == asked
