"""What the documentation site makes of a page's text."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from generate_docs import ROOT
from site_links import on_page_markdown


def shown(markdown: str) -> str:
    """`markdown` of docs/models.md, as the site reads it."""
    page = SimpleNamespace(
        file=SimpleNamespace(abs_src_path=ROOT / "docs" / "models.md", src_path="models.md")
    )
    return on_page_markdown(markdown, page=page, config={"docs_dir": str(ROOT / "docs")})


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("| `--dtype [a\\|b]` | c \\| d |", "| `--dtype [a|b]` | c \\| d |"),
        ("`fish \\| source` outside a table", "`fish \\| source` outside a table"),
        ("NAME=org/repo[@revision][:file]", "NAME=org/repo\\[@revision]\\[:file]"),
        ("`NAME=hf:org/repo[@revision]`", "`NAME=hf:org/repo[@revision]`"),
        ("```text\nrepo[:file]\n```\n[:file]", "```text\nrepo[:file]\n```\n\\[:file]"),
        ("[bulk.md](bulk.md#fits)", "[Bulk extraction](bulk.md#fits)"),
    ],
)
def test_code_and_links(written: str, read: str) -> None:
    assert shown(written) == read


def test_links_to_the_code(monkeypatch: pytest.MonkeyPatch) -> None:
    link = "[README](../README.md#models)"
    monkeypatch.delenv("REPOSITORY_URL", raising=False)
    assert shown(link) == "README"
    monkeypatch.setenv("REPOSITORY_URL", "https://example.org/repo/")
    assert shown(link) == "[README](https://example.org/repo/blob/main/README.md#models)"


def test_a_link_to_nothing() -> None:
    with pytest.raises(FileNotFoundError, match=r"models\.md links to \.\./nothing\.md"):
        shown("[x](../nothing.md)")
