"""For the documentation site: which pages the search shows first, and that it finds every word.

Measurements repeat nearly every word of the other pages, beside a number. A reader who types such
a word wants the page that explains it, and first of all the question that is asked like that.
"""

from __future__ import annotations

from pathlib import Path
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


# lunr tells nodes of its index apart by their texts: each letter, and the number of the node that
# it leads to. Where letters are digits, two nodes can have one text: `1` to 23, and `12` to 3.
# Then words are lost, such as all that begin with a c. An end for each number keeps them apart.
_JOINED, _APART = "e=e+s+o.id}return e", 'e=e+s+o.id+";"}return e'


def on_post_build(*, config: Any, **_: Any) -> None:
    """Called by MkDocs when the site is there: mends lunr in the theme's worker.

    Raises RuntimeError where the theme has another lunr.
    """
    (worker,) = Path(config.site_dir, "assets/javascripts/workers").glob("search.*.min.js")
    code = worker.read_text()
    if code.count(_JOINED) != 1:
        raise RuntimeError(
            f"{worker.name} has another lunr: see whether it still loses words "
            "(tests/page/test_site_search.py), and take on_post_build out or adapt it"
        )
    worker.write_text(code.replace(_JOINED, _APART))
