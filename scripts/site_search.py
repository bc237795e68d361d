"""For the documentation site: which pages the search shows first.

Measurements repeat nearly every word of the other pages, beside a number. A reader who types such
a word wants the page that explains it, and first of all the question that is asked like that.
"""

from __future__ import annotations

from typing import Any

# By the beginning of a page's path: what its matches count beside those of other pages.
WEIGHTS = {"questions.md": 4.0, "measurements/": 0.1, "comparison.md": 0.2, "sizing.md": 0.5}


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """Called by MkDocs with each page's text."""
    path = page.file.src_uri
    weight = next((value for start, value in WEIGHTS.items() if path.startswith(start)), None)
    if weight is not None:
        page.meta["search"] = {"boost": weight}
    return markdown
