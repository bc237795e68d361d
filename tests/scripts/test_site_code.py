"""Which code the documentation site keeps on one line."""

from __future__ import annotations

from site_code import LONGEST, whole


def test_short_code_is_marked_wherever_it_stands() -> None:
    page = "<td><code>--tls-key-password-file</code></td><p>or <code>a &lt; b</code></p>"
    assert whole(page) == (
        '<td><code class="whole">--tls-key-password-file</code></td>'
        '<p>or <code class="whole">a &lt; b</code></p>'
    )


def test_letters_are_counted_as_they_are_shown() -> None:
    shown = "<" * LONGEST
    escaped = shown.replace("<", "&lt;")
    assert 'class="whole"' in whole(f"<code>{escaped}</code>")
    assert 'class="whole"' not in whole(f"<code>{escaped}x</code>")


def test_blocks_and_code_that_has_a_class_stay() -> None:
    for page in (
        "<pre><span></span><code>vim-embed map\n</code></pre>",
        '<code class="doc">Client</code>',
        f"<code>{'x ' * LONGEST}</code>",
    ):
        assert whole(page) == page
