"""The search field of the documentation site, in a real browser."""

from __future__ import annotations

import json
import os
import string
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from .conftest import Browser

ROOT = Path(__file__).parents[2]
SCRIPT = (ROOT / "docs" / "search.js").read_text()
# What a reader types, and the heading that has to come first.
FOUND = {
    "microjansky": "My fluxes are in microjansky",
    "different pixel scales": "My surveys have different pixel scales",
    "masked pixels NaN": "My images have NaN pixels",
    "how sure is my score": "Is my score above chance",
    "which identifiers in the paper": "How do I cite it",
    "find similar galaxies": "How do I find galaxies that look like this one",
    "nginx HTTPS": "How do I put it behind nginx",
    "two groups keys": "How do I set API keys",
    "CUDA 12 driver": "Which driver do I need",
    "alerts slow answers": "which alerts tell of slow",
    "Kubernetes probes": "Which health check",
    "add a file format": "How do I add a file format",
    "which tests do I run": "Which tests do I run",
    "what does CI run": "What does CI run",
}


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


@pytest.mark.parametrize(
    ("typed", "asked"),
    [
        ("How do I cite it?", "cite"),
        ("which alerts, and galaxies", "alert galax"),
        ("HTTPS class status NaN", "HTTPS class status NaN"),
        ("is it", "is it"),  # nothing would be left
    ],
)
def test_the_worker_is_asked_without_stop_words_and_in_the_singular(
    browser: Browser, tmp_path: Path, typed: str, asked: str
) -> None:
    page = tmp_path / "page.html"
    page.write_text(f"<script>{SCRIPT}</script>")
    browser.open(page.as_uri())
    assert _echoed(browser, {"type": 2, "data": typed}) == {"type": 2, "data": asked}
    assert _echoed(browser, {"type": 0, "data": typed}) == {"type": 0, "data": typed}


def _echoed(browser: Browser, message: dict[str, Any]) -> Any:
    """What a worker gets of a message."""
    return browser.driver.execute_async_script(
        """const code = URL.createObjectURL(new Blob(["onmessage = (e) => postMessage(e.data)"]));
        const worker = new Worker(code);
        worker.onmessage = (event) => arguments[1](event.data);
        worker.postMessage(arguments[0]);""",
        message,
    )


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The documentation, built and served."""
    pytest.importorskip("material", reason="pip install -e '.[docs]' builds the documentation")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--site-dir", str(folder)]
    quiet = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    subprocess.run(command, cwd=ROOT, env=quiet, check=True)

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder)))
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    server.server_close()


def test_what_readers_type_finds_the_heading_that_answers(browser: Browser, site: str) -> None:
    browser.open(site)
    first = {typed: _first_heading(browser, typed) for typed in FOUND}
    wrong = {typed: got for typed, got in first.items() if FOUND[typed] not in got}
    assert not wrong, json.dumps(wrong, indent=2)


def _first_heading(browser: Browser, typed: str) -> str:
    """The first section that the search shows."""
    _search(browser, typed)
    found = browser.driver.find_elements("css selector", ".md-search-result__article h2")
    return found[0].text if found else ""


def test_no_word_of_the_index_makes_a_query_invalid(browser: Browser, site: str) -> None:
    """lunr can lose a word among numbers; then a query that begins it finds nothing at all."""
    browser.open(site)
    browser.console()
    for start in string.ascii_lowercase + string.digits:
        if start not in ("a", "i"):  # stop words
            assert not _search(browser, start).startswith("No matching"), start
    assert not [line for line in browser.console() if "Invalid query" in line]


def _search(browser: Browser, typed: str) -> str:
    """Type it, and wait for what the search says of it."""
    field = browser.find(".md-search__input")
    field.click()
    field.clear()
    browser.until(lambda: "Type to" in browser.text(".md-search-result__meta"), "an empty field")
    field.send_keys(typed)
    browser.until(lambda: "matching" in browser.text(".md-search-result__meta"), typed)
    return browser.text(".md-search-result__meta")
