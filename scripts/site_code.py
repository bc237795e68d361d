"""For the documentation site: short code, such as an option or a name, stays on one line.

Browsers break code at every dash, also between `--` and the word behind it. Short spans get the
class `whole`, which docs/site.css keeps in one piece. Longer ones break, at spaces first.
"""

from __future__ import annotations

import html
import re
from typing import Any

LONGEST = 36  # letters that fit beside another column, and across a telephone
_BLOCK_OR_SPAN = re.compile(r"<pre\b.*?</pre>|<code>([^<]*)</code>", re.DOTALL)


def whole(page: str) -> str:
    """The HTML with short spans of code marked; blocks stay as they are."""

    def mark(match: re.Match[str]) -> str:
        text = match[1]
        if text is None or len(html.unescape(text)) > LONGEST:
            return match[0]
        return f'<code class="whole">{text}</code>'

    return _BLOCK_OR_SPAN.sub(mark, page)


def on_page_content(html: str, **_: Any) -> str:
    """Called by MkDocs with each page's HTML."""
    return whole(html)
