"""The page at `/` in a real browser, before a real server."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from itertools import product
from pathlib import Path

import httpx
import numpy as np
import pytest
from astropy.io import fits
from PIL import Image
from selenium.webdriver import ActionChains
from selenium.webdriver.common.keys import Keys

from support.serving import running
from vim_embed.engines.arithmetic import ArithmeticEngine
from vim_embed.engines.interface import ModelStatus
from vim_embed.http.app import create_app
from vim_embed.settings import Settings

from .conftest import Browser

KEY = "only-the-owner-knows-this"


@pytest.fixture
def url() -> Iterator[str]:
    with running(create_app(Settings(), ArithmeticEngine(("vim-tiny", "other")))) as url:
        yield url


@pytest.fixture
def galaxies(tmp_path: Path) -> Path:
    """Five rows of uint8 pixels in a file."""
    path = tmp_path / "galaxies of O'Neil.npy"
    np.save(path, np.random.default_rng(5).integers(0, 256, (5, 3, 8, 8), dtype=np.uint8))
    return path


def drop(browser: Browser, name: str, kind: str, content: bytes) -> None:
    """Drop a file onto the page, as a file manager would."""
    browser.driver.execute_script(
        """
        const [name, type, bytes] = arguments;
        const carried = new DataTransfer();
        carried.items.add(new File([new Uint8Array(bytes)], name, { type }));
        const options = { dataTransfer: carried, bubbles: true, cancelable: true };
        const box = document.getElementById("drop");
        for (const event of ["dragover", "drop"]) box.dispatchEvent(new DragEvent(event, options));
        """,
        name,
        kind,
        list(content),
    )


def choose(browser: Browser, path: Path) -> None:
    browser.until(lambda: browser.find("#model").is_enabled(), "the models")
    browser.find("#file").send_keys(str(path))


def press(browser: Browser, key: str) -> None:
    ActionChains(browser.driver).send_keys(key).perform()


def until_embedded(browser: Browser) -> None:
    browser.until(lambda: browser.find("#result").is_displayed(), "an embedding")


def test_a_fits_file_is_dropped_and_shown_as_the_model_sees_it(browser: Browser, url: str) -> None:
    sky = np.random.default_rng(0).normal(size=(5, 30, 30)).astype(np.float32)
    buffer = io.BytesIO()
    fits.PrimaryHDU(sky).writeto(buffer)
    browser.open(url)
    browser.until(lambda: browser.find("#model").is_enabled(), "the models")
    drop(browser, "sky.fits", "", buffer.getvalue())
    browser.until_text("#try-error", "choose one or three with bands=R,G,B")
    fields = {name: browser.find(f"#fits [name={name}]") for name in ("bands", "stretch")}
    fields["bands"].send_keys("3,1,0", Keys.TAB)
    until_embedded(browser)
    browser.until_text("#preview-note", "what the model sees; black")
    assert browser.find("#preview").get_property("naturalWidth") == 8
    assert "bands=3%2C1%2C0" in browser.text("#curl")
    fields["stretch"].send_keys("zscale")
    browser.until(lambda: "stretch=zscale" in browser.text("#curl"), "the other stretch")
    code = browser.text("#python")
    compile(code, "snippet", "exec")
    assert "application/fits" in code
    browser.screenshot("fits")
    assert [line for line in browser.console() if "422" not in line] == []


def test_models_and_their_state_are_shown(browser: Browser, url: str) -> None:
    browser.open(url)
    browser.until_text("#state", "ready, 2 of 2 models")
    shown = browser.text("#models")
    for text in (
        "vim-tiny",
        "other",
        "default",
        "numpy: a deterministic engine",
        "sha256:0",
        "cpu",
    ):
        assert text in shown
    assert browser.console() == []


def test_a_dropped_image_gives_its_embedding(browser: Browser, url: str, tmp_path: Path) -> None:
    path = tmp_path / "ngc1300.png"
    Image.fromarray(np.arange(8 * 8 * 3, dtype=np.uint8).reshape(8, 8, 3)).save(path)
    expected = httpx.post(
        f"{url}/embed", content=path.read_bytes(), headers={"Content-Type": "image/png"}
    )
    browser.open(url)
    browser.until(lambda: browser.find("#model").is_enabled(), "the models")
    drop(browser, path.name, "image/png", path.read_bytes())
    until_embedded(browser)
    assert browser.text("#result-title") == "ngc1300.png: 8 numbers"
    for name in ("queue", "forward", "total", "round trip"):
        assert name in browser.text("#timings")
    assert "Bars of 8 values" in str(browser.find("#vector").get_attribute("aria-label"))
    assert browser.find("#preview").get_property("naturalWidth") == 8
    browser.find("#download").click()
    saved = browser.downloads / "ngc1300-embedding.npy"
    browser.until(saved.exists, "the download")
    assert saved.read_bytes() == expected.content
    first = [float(v) for v in browser.text("#values").rstrip(", …").split(",")]
    np.testing.assert_allclose(first, np.load(saved)[0], rtol=1e-4)
    assert browser.console() == []


def test_the_snippets_make_the_same_request(
    browser: Browser, url: str, galaxies: Path, tmp_path: Path
) -> None:
    browser.open(url)
    browser.until(lambda: browser.find("#model").is_enabled(), "the models")
    browser.find("#model").send_keys("other")
    browser.find("#pooling").send_keys("cls")
    choose(browser, galaxies)
    until_embedded(browser)
    assert "5 rows of 8 numbers" in browser.text("#result-title")
    pixels = galaxies.read_bytes()
    expected = httpx.post(
        f"{url}/embed?model=other&pooling=cls",
        content=pixels,
        headers={"Content-Type": "application/x-npy"},
    )
    curl, python = browser.text("#curl"), browser.text("#python")
    assert shutil.which("curl"), "the test needs curl"
    subprocess.run(["bash", "-c", curl], cwd=tmp_path, check=True, timeout=60)
    assert (tmp_path / "embedding.npy").read_bytes() == expected.content
    python += "\nnp.save('python.npy', answer.embeddings)\nprint(answer.provenance.model)"
    done = subprocess.run(
        [sys.executable, "-c", python], cwd=tmp_path, check=True, capture_output=True, timeout=60
    )
    assert done.stdout.decode().endswith("other\n")
    assert (tmp_path / "python.npy").read_bytes() == expected.content


def test_every_row_of_an_array_can_be_looked_at(browser: Browser, url: str, galaxies: Path) -> None:
    browser.open(url)
    choose(browser, galaxies)
    until_embedded(browser)
    before = browser.text("#values")
    browser.find("#row").send_keys(Keys.ARROW_UP)
    browser.until(lambda: browser.text("#values") != before, "another row")
    browser.find("#row").send_keys(Keys.BACKSPACE + "99")
    browser.until(lambda: browser.text("#values") != before, "the last row, not beyond it")
    assert not browser.find("#preview-figure").is_displayed()


def test_an_error_is_told_and_listed(browser: Browser, url: str, tmp_path: Path) -> None:
    path = tmp_path / "grey.npy"
    np.save(path, np.zeros((2, 1, 8, 8), np.uint8))
    browser.open(url)
    choose(browser, path)
    browser.until_text("#try-error", "invalid_input")
    told = browser.text("#try-error")
    assert "expected 3 channels" in told
    browser.until_text("#errors", "expected 3 channels")
    listed = browser.text("#errors")
    assert "422, POST /embed" in listed
    assert told.split()[-1].rstrip(")") in listed, "the request id"


def test_a_file_of_another_kind_is_not_sent(browser: Browser, url: str) -> None:
    browser.open(url)
    browser.until(lambda: browser.find("#model").is_enabled(), "the models")
    drop(browser, "notes.txt", "text/plain", b"hello")
    browser.until_text("#try-error", "neither an image, a FITS file nor a .npy")
    assert httpx.get(f"{url}/status").json()["errors"] == []


def test_the_rates_follow_the_work(browser: Browser, url: str, galaxies: Path) -> None:
    browser.open(url)
    browser.until_text("#state", "ready")
    assert browser.text("#p50") == "–"
    for _ in range(3):
        httpx.post(
            f"{url}/embed",
            content=galaxies.read_bytes(),
            headers={"Content-Type": "application/x-npy"},
        ).raise_for_status()
    browser.until_text("#answers", "3 answers")
    browser.until(lambda: float(browser.text("#rate")) > 0, "a rate")
    assert browser.text("#mean-rows") == "5"
    assert float(browser.text("#p50")) <= float(browser.text("#p99"))
    assert "v-20h" in str(browser.find("#history path").get_attribute("d"))


def test_the_page_works_by_keyboard(browser: Browser, url: str) -> None:
    browser.open(url)
    browser.until(lambda: browser.find("#model").is_enabled(), "the models")
    seen = []
    for _ in range(12):
        press(browser, Keys.TAB)
        focused = browser.driver.switch_to.active_element
        seen.append(focused.get_attribute("id"))
        if seen[-1] == "example":
            break
    assert {"pause", "docs", "model", "pooling", "file", "example"} <= set(seen)
    press(browser, Keys.ENTER)
    until_embedded(browser)
    assert browser.text("#result-title") == "example.png: 8 numbers"
    assert browser.driver.switch_to.active_element.get_attribute("id") == "result-title"


def test_copy_puts_the_snippet_on_the_clipboard(browser: Browser, url: str) -> None:
    permissions = {"origin": url, "permissions": ["clipboardReadWrite", "clipboardSanitizedWrite"]}
    browser.driver.execute_cdp_cmd("Browser.grantPermissions", permissions)
    browser.open(url)
    browser.until(lambda: browser.find("#model").is_enabled(), "the models")
    browser.find("#example").click()
    until_embedded(browser)
    browser.find("[data-copy=curl]").click()
    browser.until_text("[data-copy=curl]", "Copied")
    copied = browser.driver.execute_async_script(
        "navigator.clipboard.readText().then(arguments[0])"
    )
    assert copied == browser.text("#curl")


def test_updates_can_be_paused(browser: Browser, url: str, galaxies: Path) -> None:
    browser.open(url)
    browser.until_text("#state", "ready")
    browser.find("#pause").click()
    assert browser.find("#pause").get_attribute("aria-pressed") == "true"
    choose(browser, galaxies)
    until_embedded(browser)
    assert browser.text("#answers").startswith("0")
    browser.find("#pause").click()
    browser.until_text("#answers", "1 answer")


def test_a_key_is_asked_for_and_kept_in_the_tab_alone(browser: Browser, galaxies: Path) -> None:
    app = create_app(Settings(api_keys=KEY), ArithmeticEngine())
    with running(app, wait=False) as url:
        browser.open(url)
        browser.until(lambda: browser.find("#key-section").is_displayed(), "the question")
        assert not browser.find("#drop").is_displayed(), "nothing can be done yet"
        assert "arithmetic" not in browser.text("body"), "the models are shown without a key"
        browser.find("#key").send_keys("wrong" + Keys.ENTER)
        browser.until_text("#problem", "does not accept this key")
        browser.find("#key").send_keys(KEY + Keys.ENTER)
        browser.until_text("#state", "ready, 1 of 1 model")
        choose(browser, galaxies)
        until_embedded(browser)
        assert KEY not in browser.driver.page_source
        assert "$VIM_EMBED_API_KEY" in browser.text("#curl")
        script = "return [localStorage.length, document.cookie, sessionStorage.length]"
        assert browser.driver.execute_script(script) == [0, "", 1]
        browser.find("#forget").click()
        browser.until(lambda: browser.find("#key-section").is_displayed(), "the question again")


class SlowlyLoading(ArithmeticEngine):
    """One model is ready, one failed, one loads until told."""

    def __init__(self) -> None:
        super().__init__(("vim-tiny", "broken", "late"))
        self.gate = threading.Event()

    def load(self) -> None:
        assert self.gate.wait(PATIENCE)
        super().load()

    def status(self) -> Mapping[str, ModelStatus]:
        known = dict(super().status())
        if not self.gate.is_set():
            return {
                name: ModelStatus(name, (), "loading", "downloading the weights") for name in known
            }
        reason = "the file has 12 tensors of another shape: is it a vim-small checkpoint?"
        known["broken"] = ModelStatus("broken", (), "failed", reason)
        info = known["late"].info
        assert info is not None
        weights = replace(info.weights, random=True, source="random")
        known["late"] = replace(known["late"], info=replace(info, weights=weights))
        return known


PATIENCE = 60


@contextmanager
def loading() -> Iterator[tuple[str, SlowlyLoading]]:
    engine = SlowlyLoading()
    with running(create_app(Settings(), engine), wait=False) as url:
        try:
            yield url, engine
        finally:
            engine.gate.set()


def test_loading_and_failed_models_say_why(browser: Browser) -> None:
    with loading() as (url, engine):
        browser.open(url)
        browser.until_text("#state", "loading")
        browser.until_text("#models", "downloading the weights")
        assert "no model is ready" in browser.text("#problem")
        assert not browser.find("#model").is_enabled()
        assert not browser.find("#example").is_enabled()
        drop(browser, "early.png", "image/png", b"")
        browser.until_text("#try-error", "No model is ready yet")
        browser.screenshot("loading")
        engine.gate.set()
        browser.until_text("#state", "ready, 2 of 3 models")
        browser.until_text("#models", "is it a vim-small checkpoint?")
        assert "Random weights" in browser.text("#models")
        assert browser.find("#example").is_enabled()
        assert not browser.find("#problem").is_displayed()
        browser.screenshot("failed-and-random")


def test_random_weights_are_flagged_beside_the_numbers(browser: Browser) -> None:
    with loading() as (url, engine):
        engine.gate.set()
        browser.open(url)
        browser.until_text("#state", "ready")
        browser.find("#model").send_keys("late")
        browser.find("#example").click()
        until_embedded(browser)
        assert "these numbers mean nothing" in browser.text("#random")


def test_a_service_that_goes_away_is_told(browser: Browser) -> None:
    with running(create_app(Settings(), ArithmeticEngine())) as url:
        browser.open(url)
        browser.until_text("#state", "ready")
    browser.until_text("#state", "no answer")
    assert "the numbers are old" in browser.text("#problem")


def test_nothing_comes_from_elsewhere(browser: Browser, url: str) -> None:
    browser.open(url)
    browser.until_text("#state", "ready")
    browser.find("#example").click()
    until_embedded(browser)
    script = "return performance.getEntriesByType('resource').map((entry) => entry.name)"
    loaded = browser.driver.execute_script(script)
    assert any(name.endswith("/page/status.js") for name in loaded)
    assert all(name.startswith((url, f"blob:{url}")) for name in loaded), loaded


def test_the_text_can_be_read(browser: Browser, url: str, galaxies: Path) -> None:
    """In both schemes, on a wide and on a narrow screen."""
    browser.open(url)
    choose(browser, galaxies)
    until_embedded(browser)
    httpx.get(f"{url}/models/unknown")
    browser.until_text("#errors", "unknown_model")
    for scheme, width in product(("light", "dark"), (1100, 360)):
        browser.emulate(prefers_color_scheme=scheme, prefers_reduced_motion="reduce")
        browser.width(width)
        browser.screenshot(f"{scheme}-{width}")
        page_width = browser.driver.execute_script("return document.documentElement.scrollWidth")
        assert page_width <= width, f"the page scrolls sideways: {scheme}, {width}"
        poor = browser.driver.execute_script(CONTRAST)
        assert poor == [], f"{scheme}, {width}: {json.dumps(poor)}"


# Every visible text against the nearest painted ground, by WCAG 2's formula; AA asks for 4.5.
CONTRAST = """
const parse = (text) => text.match(/[\\d.]+/g).map(Number);
const light = ([r, g, b]) => {
  const [x, y, z] = [r, g, b].map((v) => v / 255)
    .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
  return 0.2126 * x + 0.7152 * y + 0.0722 * z;
};
const ground = (node) => {
  for (; node; node = node.parentElement) {
    const colour = parse(getComputedStyle(node).backgroundColor);
    if (colour.length === 3 || colour[3] > 0) return colour;
  }
  return [255, 255, 255];
};
const poor = [];
for (const node of document.querySelectorAll("body *")) {
  const own = [...node.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim());
  if (!own || !node.checkVisibility() || node.closest(":disabled, noscript")) continue;
  const [a, b] = [light(parse(getComputedStyle(node).color)), light(ground(node))];
  const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
  if (ratio < 4.5) poor.push([node.tagName, node.textContent.slice(0, 40), ratio.toFixed(2)]);
}
return poor;
"""
