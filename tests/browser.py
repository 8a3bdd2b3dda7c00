"""A page in the browser that is installed, for tests of pages."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from playwright.sync_api import Page, sync_playwright

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


@contextmanager
def opened(file: Path) -> Iterator[tuple[Page, list[str]]]:
    """The page, and all that the browser complained about or fetched; skips where there is no browser."""
    found = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip(f"needs a browser: {', '.join(BROWSERS)}; on Debian: apt install chromium")
    heard: list[str] = []
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=found)
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        page.on("console", lambda message: heard.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: heard.append(f"error: {error}"))
        page.on("dialog", lambda dialog: heard.append(f"dialog: {dialog.message}") or dialog.dismiss())
        page.on("request", lambda request: heard.append(request.url) if request.url.startswith("http") else None)
        page.goto(file.as_uri())
        yield page, heard
        browser.close()
