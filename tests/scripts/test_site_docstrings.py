"""Arguments in a docstring's prose, as the documentation site lists them."""

from __future__ import annotations

from site_docstrings import listed


def test_each_argument_is_an_item() -> None:
    html = "<p>url: of the service; default X. low,\nhigh: its range. timeout: seconds.</p>"
    assert listed(html.replace(",\n", ", ")) == (
        "<ul><li><code>url</code>: of the service; default X.</li>"
        "<li><code>low, high</code>: its range.</li><li><code>timeout</code>: seconds.</li></ul>"
    )


def test_other_paragraphs_stay() -> None:
    html = "<p>A client; safe to share. Close it: that ends its connections.</p>"
    assert listed(html) == html
