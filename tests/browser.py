"""A page in the browser that is installed, for tests of pages."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from playwright.sync_api import Page, sync_playwright

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


@contextmanager
def opened(where: Path | str) -> Iterator[tuple[Page, list[str]]]:
    """The page of a file or address, and all that the browser complained about or fetched from elsewhere; skips where
    there is no browser.
    """
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
        address = where if isinstance(where, str) else where.as_uri()
        own = (address, "data:", "blob:")
        page.on("request", lambda request: None if request.url.startswith(own) else heard.append(request.url))
        page.goto(address)
        yield page, heard
        browser.close()
