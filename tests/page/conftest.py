"""A real headless Chromium, driven through its own driver."""

from __future__ import annotations

import base64
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from selenium.webdriver import Chrome, ChromeOptions, ChromeService
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.wait import WebDriverWait

PATIENCE = 60  # seconds; the machine may be busy
_BROWSERS = ("chromium", "chromium-browser", "google-chrome")


class Browser:
    """What the tests ask of a browser."""

    def __init__(self, driver: Chrome, downloads: Path) -> None:
        self.driver = driver
        self.downloads = downloads

    def open(self, url: str) -> None:
        self.driver.get(url)

    def find(self, css: str) -> WebElement:
        return self.driver.find_element(By.CSS_SELECTOR, css)

    def text(self, css: str) -> str:
        return self.find(css).text

    def until(self, condition: Callable[[], Any], what: str) -> None:
        """Wait for a condition; `what` says in the failure what did not come."""
        wait = WebDriverWait(self.driver, PATIENCE, 0.1)
        wait.until(lambda _: condition(), f"waited for {what}; console: {self.console()}")

    def until_text(self, css: str, text: str) -> None:
        self.until(lambda: text in self.text(css), f"{text!r} in {css}")

    def console(self) -> list[str]:
        """What the browser complained of since the last call: errors and refused resources."""
        return [entry["message"] for entry in self.driver.get_log("browser")]  # type: ignore[no-untyped-call]

    def emulate(self, **features: str) -> None:
        """CSS media features, such as prefers_color_scheme="dark"."""
        named = [{"name": k.replace("_", "-"), "value": v} for k, v in features.items()]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": named})

    def width(self, pixels: int, height: int = 900) -> None:
        """The size of the viewport, below what a window can be made to have."""
        size = {"width": pixels, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)

    def screenshot(self, name: str) -> None:
        """Keep a picture of the whole page in the folder VIM_EMBED_SCREENSHOTS, if that is set."""
        folder = os.environ.get("VIM_EMBED_SCREENSHOTS")
        if folder:
            size = self.driver.execute_cdp_cmd("Page.getLayoutMetrics", {})["cssContentSize"]
            # beyond the viewport the page is laid out anew, without a scrollbar
            size["width"] = self.driver.execute_script("return window.innerWidth")
            shot = {"captureBeyondViewport": True, "clip": {**size, "scale": 1}}
            data = self.driver.execute_cdp_cmd("Page.captureScreenshot", shot)["data"]
            (Path(folder) / f"{name}.png").write_bytes(base64.b64decode(data))


@pytest.fixture(scope="session")
def _driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Chrome, Path]]:
    found = [path for path in map(shutil.which, _BROWSERS) if path]
    chromedriver = shutil.which("chromedriver")
    if not found or chromedriver is None:
        missing = "no Chromium with a chromedriver: apt-get install chromium chromium-driver"
        if os.environ.get("VIM_EMBED_NEEDS_BROWSER"):
            pytest.fail(missing)
        pytest.skip(missing)
    downloads = tmp_path_factory.mktemp("downloads")
    options = ChromeOptions()
    options.binary_location = found[0]
    for argument in ("headless=new", "no-sandbox", "disable-dev-shm-usage", "window-size=1100,900"):
        options.add_argument(f"--{argument}")
    options.add_experimental_option("prefs", {"download.default_directory": str(downloads)})
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = Chrome(options, ChromeService(chromedriver))
    yield driver, downloads
    driver.quit()


@pytest.fixture
def browser(_driver: tuple[Chrome, Path]) -> Iterator[Browser]:
    """A browser with an empty tab."""
    driver, downloads = _driver
    driver.switch_to.new_window("tab")
    browser = Browser(driver, downloads)
    browser.console()
    yield browser
    driver.close()
    driver.switch_to.window(driver.window_handles[0])
