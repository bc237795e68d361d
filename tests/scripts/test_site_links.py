"""What the documentation site makes of a page's text."""

from __future__ import annotations

import re
from types import SimpleNamespace

import pytest
from generate_docs import ROOT
from site_links import on_page_markdown


def shown(markdown: str, name: str = "models.md") -> str:
    """`markdown` of a page of docs/, as the site reads it."""
    page = SimpleNamespace(file=SimpleNamespace(abs_src_path=ROOT / "docs" / name, src_path=name))
    return on_page_markdown(markdown, page=page, config={"docs_dir": str(ROOT / "docs")})


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("| `--dtype [a\\|b]` | c \\| d |", "| `--dtype [a|b]` | c \\| d |"),
        ("`fish \\| source` outside a table", "`fish \\| source` outside a table"),
        ("NAME=org/repo[@revision][:file]", "NAME=org/repo\\[@revision]\\[:file]"),
        ("`NAME=hf:org/repo[@revision]`", "`NAME=hf:org/repo[@revision]`"),
        ("```text\nrepo[:file]\n```\n[:file]", "```text\nrepo[:file]\n```\n\\[:file]"),
        ("[default: 0.1] [0<=x<=1]", "[default: 0.1] \\[0<=x<=1]"),
        ("[bulk.md](bulk.md#fits)", "[Bulk extraction](bulk.md#fits)"),
    ],
)
def test_code_and_links(written: str, read: str) -> None:
    assert shown(written) == read


PAGES = sorted(str(page.relative_to(ROOT / "docs")) for page in (ROOT / "docs").rglob("*.md"))


@pytest.mark.parametrize("name", PAGES)
def test_no_page_refers_to_a_link_that_is_not_there(name: str) -> None:
    """`[a] [b]` is a link to `b`, which a strict build misses: usage lines look like that."""
    text = shown((ROOT / "docs" / name).read_text(), name)
    text = re.sub(r"(?s)^ *```.*?^ *```|`[^`\n]+`", "", text, flags=re.MULTILINE)
    assert not re.findall(r"(?<!\\)\[[^\[\]]*\] ?\[[^\[\]]*\]", text)


def test_links_to_the_code(monkeypatch: pytest.MonkeyPatch) -> None:
    link = "[README](../README.md#models)"
    monkeypatch.delenv("REPOSITORY_URL", raising=False)
    assert shown(link) == "README"
    monkeypatch.setenv("REPOSITORY_URL", "https://example.org/repo/")
    assert shown(link) == "[README](https://example.org/repo/blob/main/README.md#models)"


def test_a_link_to_nothing() -> None:
    with pytest.raises(FileNotFoundError, match=r"models\.md links to \.\./nothing\.md"):
        shown("[x](../nothing.md)")
