"""For the documentation site: what a docstring says of its arguments becomes a list.

Docstrings of the code are prose: `url: of the service. timeout: seconds for each step.` In a
terminal that reads well; on a page each argument gets a line of its own.
"""

from __future__ import annotations

import re
from typing import Any

_PARAGRAPH = re.compile(r"<p>((?:[a-z_]\w*, )*[a-z_]\w*: .*?)</p>", re.DOTALL)
_NEXT = re.compile(r"(?<=\.)\s+(?=(?:[a-z_]\w*, )*[a-z_]\w*: )")
_NAME = re.compile(r"^((?:[a-z_]\w*, )*[a-z_]\w*): ")


def listed(html: str) -> str:
    """Paragraphs that begin with a name and a colon, as lists."""

    def items(match: re.Match[str]) -> str:
        found = (_NAME.sub(r"<code>\1</code>: ", item) for item in _NEXT.split(match[1]))
        return "<ul>" + "".join(f"<li>{item}</li>" for item in found) + "</ul>"

    return _PARAGRAPH.sub(items, html)


def on_page_content(html: str, *, page: Any, **_: Any) -> str:
    """Called by MkDocs with each page's HTML."""
    return listed(html) if page.file.src_path == "api.md" else html
