"""The page of `langdc demo` in a real browser: upload, ask, compare, errors, two widths, light and dark.

`make test-demo` runs it. With PICTURE=FILE it also takes the picture of the README.
"""

import io
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import pytest
from PIL import Image
from playwright.sync_api import Page

from tests import browser, stock

pytest.importorskip("gradio", reason="`make test-demo` runs this")

CONTRAST = """() => {
    const rgb = (text) => text.match(/[\\d.]+/g).map(Number);
    const linear = (v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    const light = ([r, g, b]) => 0.2126 * linear(r / 255) + 0.7152 * linear(g / 255) + 0.0722 * linear(b / 255);
    const ground = (e) => {
        for (; e; e = e.parentElement) {
            const c = rgb(getComputedStyle(e).backgroundColor);
            if (c.length === 3 || c[3] === 1) return c;
        }
        return [255, 255, 255];
    };
    const said = (e) => [...e.childNodes].some((n) => n.nodeType === 3 && n.data.trim());
    return [...document.querySelectorAll('gradio-app :not(style, script)')]
        .filter((e) => said(e) && e.checkVisibility({ checkOpacity: true }))
        .map((e) => {
            const [a, b] = [light(rgb(getComputedStyle(e).color)), light(ground(e))].sort((x, y) => y - x);
            return [(a + 0.05) / (b + 0.05), e.innerText];
        });
}"""
"""Of each piece of text that is seen, the contrast to its ground as WCAG defines it."""


@contextmanager
def served(*words: str) -> Iterator[str]:
    """The address of a running demo, which must end cleanly, as by Ctrl-C."""
    command = [sys.executable, "-u", "-m", "langdc.cli", "demo", *words]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        found = re.search(r"http://127\.0\.0\.1:\d+/", process.stdout.readline())
        assert found, process.communicate(timeout=60)[1]
        yield found[0]
    finally:
        process.send_signal(signal.SIGINT)
        _, complaints = process.communicate(timeout=60)
    assert process.returncode == 0 and not complaints, complaints


@pytest.fixture(scope="module")
def sample() -> Iterator[str]:
    with served() as address:
        yield address


@pytest.fixture(scope="module")
def tiny() -> Iterator[str]:
    """A stock model, which all training-free methods serve; its weights are random."""
    words = ("--model", stock.folder("qwen2_5_vl"), "--frames", "8", "--max-new-tokens", "3", "--compressor", "uniform")
    with served(*words) as address:
        yield address


@contextmanager
def opened(address: str) -> Iterator[Page]:
    """The page, about which the browser must not complain."""
    with browser.opened(address) as (page, heard):
        yield page
    # Gradio's player warns at each new file
    assert not [each for each in heard if each != "warning: Method not implemented."]


@pytest.fixture
def mp4(tmp_path: Path) -> Path:
    return stock.mp4(tmp_path, count=16, fps=8)


def ask(page: Page) -> list[str]:
    """The texts of the columns of the answer."""
    page.evaluate("document.querySelector('.ldc')?.remove()")
    page.get_by_role("button", name="Ask").click()
    page.wait_for_selector(".ldc > section")
    return page.locator(".ldc > section").all_inner_texts()


def drop(page: Page, file: Path) -> None:
    page.wait_for_selector("[aria-label=Clear], input[type=file]", state="attached")
    if (clear := page.get_by_label("Clear")).is_visible():
        clear.click()
    page.locator("input[type=file]").first.set_input_files(file)
    page.wait_for_selector(f"video[src*='{file.name}']", state="attached")


def test_the_first_question_about_a_sample_video(sample: str, capsys) -> None:
    started = time.perf_counter()
    with opened(sample) as page:
        first, second = ask(page)
        took = time.perf_counter() - started
        assert "langdc, as trained" in first and "snapkv" in second
        assert re.search(r"\n1\s+28 of 2,048 tokens read", first), "what was drawn has one object there"
        assert "red triangle up" in first and page.locator(".ldc img").count() == 8
    with capsys.disabled():
        sys.stdout.write(f"\nstarting the browser, opening the page and the first answer: {took:.1f} s\n")


def test_another_sample_brings_its_question(sample: str) -> None:
    with opened(sample) as page:
        page.locator(".gallery-item").nth(1).click()
        page.wait_for_function("document.querySelector('textarea').value === 'what shape is the purple object ?'")
        assert re.search(r"\ncross\s+\d+ of", ask(page)[0])


def test_a_dropped_file_and_two_chosen_methods(tiny: str, mp4: Path) -> None:
    with opened(tiny) as page:
        drop(page, mp4)
        page.get_by_label("Question").fill("what is in the video ?")
        whole, kept = ask(page)
        assert "all tokens" in whole and "uniform" in kept
        page.get_by_label("Compared with").click()
        page.get_by_role("option", name="vidcom2").click()
        page.get_by_label("Share of the tokens").first.fill("0.5")
        whole, kept = ask(page)
        read, before = (int(number) for number in re.findall(r"(\d+) of (\d+) tokens read", kept)[0])
        assert "vidcom2" in kept and read == before // 2


def test_mistakes_are_told_on_the_page(tiny: str, mp4: Path, tmp_path: Path) -> None:
    with opened(tiny) as page:
        page.get_by_label("Question").fill(" ")
        assert ask(page) == ["The question is empty; ask something."]
        page.get_by_label("Question").fill("what <b>is</b> it ?")
        page.get_by_label("Clear").click()
        assert ask(page) == ["There is no video. Drop a file, or choose a sample."]
        bad = tmp_path / "bad.mp4"
        bad.write_bytes(b"no video" * 99)
        drop(page, bad)
        assert ask(page)[0].startswith("bad.mp4: cannot be read as a video")
        drop(page, mp4)
        assert "tokens read" in ask(page)[0], "the page answers after a mistake"


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1440])
def test_nothing_is_cut_off_and_all_can_be_read(sample: str, width: int, scheme: Literal["light", "dark"]) -> None:
    with opened(sample) as page:
        page.emulate_media(color_scheme=scheme)
        page.set_viewport_size({"width": width, "height": 900})
        page.reload()
        assert len(ask(page)) == 2
        assert page.evaluate("document.documentElement.scrollWidth") == width
        one, other = (page.locator(".ldc > section").nth(number).bounding_box() for number in range(2))
        assert one and other and (one["y"] == other["y"]) == (width == 1440), "side by side where there is room"
        assert other["x"] + other["width"] <= width
        dark = page.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/)[0] < 128")
        assert dark == (scheme == "dark")
        faint = [(round(ratio, 1), text) for ratio, text in page.evaluate(CONTRAST) if ratio < 4.5]
        assert not faint
        if (width, scheme) == (1440, "light") and (picture := os.environ.get("PICTURE")):
            taken = Image.open(io.BytesIO(page.screenshot(full_page=True)))
            taken.quantize(256, Image.Quantize.MAXCOVERAGE, kmeans=2).save(picture, optimize=True)
