"""For the documentation site: links that leave docs/ lead to the repository, at REPOSITORY_URL.

Without that variable they become plain text. The pages are also read where they lie, on a
repository's own pages, where `../README.md` is right. A link that is called by its file, such as
`[bulk.md](bulk.md)`, gets the title of that page. Square brackets and bars are written as the
site's Markdown wants them.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

# Fenced blocks and code spans.
_CODE = r"^ *```.*?^ *```$|`[^`\n]+`"
# Square brackets of a usage line, such as [:file], which are no links.
_USAGE = re.compile(
    rf"{_CODE}|\[(?=@revision\]|:file\])|(?<=\])\[|(?<=\] )\[", re.MULTILINE | re.DOTALL
)
# GitHub wants \| for a bar in a cell's code. The site's Markdown would show the backslash.
_ROW = re.compile(r"^\|.*\|$", re.MULTILINE)
_SPAN = re.compile(r"`[^`\n]+`")
_LINK = re.compile(r"\[(?P<text>[^\]]*)\]\((?P<target>(?:\.\./)+[^)#\s]*)(?P<anchor>#[^)\s]*)?\)")
_BY_FILE = re.compile(
    r"\[(?P<text>[\w./-]+\.md)\]\((?P<target>[\w./-]+\.md)(?P<anchor>#[^)\s]*)?\)"
)


def on_page_markdown(markdown: str, *, page: Any, config: Any, **_: Any) -> str:
    """Called by MkDocs with each page's text."""
    docs = Path(config["docs_dir"]).resolve()
    root = docs.parent
    repository = os.environ.get("REPOSITORY_URL", "").rstrip("/")
    folder = Path(page.file.abs_src_path).resolve().parent

    def outside(match: re.Match[str]) -> str:
        target = (folder / match["target"]).resolve()
        if target.is_relative_to(docs):
            return match[0]
        if not target.exists():
            raise FileNotFoundError(f"{page.file.src_path} links to {match['target']}")
        where = target.relative_to(root).as_posix()
        if not repository:
            return match["text"]
        return f"[{match['text']}]({repository}/blob/main/{where}{match['anchor'] or ''})"

    def titled(match: re.Match[str]) -> str:
        target = (folder / match["target"]).resolve()
        if not target.is_relative_to(docs) or not target.exists():
            return match[0]
        return f"[{_title(target)}]({match['target']}{match['anchor'] or ''})"

    def bars(row: re.Match[str]) -> str:
        return _SPAN.sub(lambda code: code[0].replace("\\|", "|"), row[0])

    text = _USAGE.sub(lambda match: "\\[" if match[0] == "[" else match[0], markdown)
    return _LINK.sub(outside, _BY_FILE.sub(titled, _ROW.sub(bars, text)))


def _title(page: Path) -> str:
    return page.read_text().partition("\n")[0].removeprefix("# ").strip()
