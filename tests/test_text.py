"""Hostile text is text in everything that is printed and in every page and table that is written."""

import csv
import io
import json
import logging
import re
import unicodedata
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.logging import RichHandler

from langdc import jsonl, log
from langdc.cli import main
from langdc.evaluate.command import report
from langdc.text import csv_cell, markdown, plain, render
from langdc.tools.ask import _show as show_answer
from langdc.tools.compare import Compared
from langdc.tools.compare import _page as compare_page
from langdc.train.progress import Bar
from langdc.types import Answer
from tests import browser
from tests.evaluate import made_up

HOSTILE = (
    "[/b]",
    "[red]x[/red] :smile:",
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "'\"><b onmouseover=alert(1)>",
    "{{ 7 * 7 }}{% raw %}",
    '=HYPERLINK("http://evil","x")',
    "+1+1",
    "-1",
    "@SUM(A1)",
    " \t=1+1",
    "\r=1+1",
    "\0\ufeff=1+1",
    "a|b",
    "`a` **b** _c_ ~~d~~ $x$ [e](javascript:alert(1)) # f",
    "two\nlines\r\nthree",
    "\x1b[31mred\x1b[0m \x1b]0;title\x07 \x9b31m",
    "\0\x08\x7f",
    "\u202egnitirw \u200f\u2067x\u2069\u200e",
    "\u2028\u2029\ufeff",
    "\udce9 half a character",
    "%s %d {} \\x \\",
)
EVERYTHING = " ".join(HOSTILE)


def bare(text: str) -> str:
    return "".join(text.split())


def assert_harmless(text: str) -> None:
    """No control character but tab and new line, no mark of direction, no half of a character."""
    wrong = [c for c in text if unicodedata.category(c) in ("Cc", "Cs") and c not in "\n\t"]
    wrong += [
        c for c in text if unicodedata.bidirectional(c) in ("RLO", "LRO", "RLE", "LRE", "PDF", "RLI", "LRI", "FSI")
    ]
    assert wrong == [] and not set("\u200e\u200f\u061c\u2028\u2029\ufeff") & set(text), wrong


# ---- the functions


@pytest.mark.parametrize("text", HOSTILE)
def test_each_function(text: str):
    for made in (plain(text), markdown(text), str(csv_cell(text)), render("langdc", "convert/card.md", **card(text))):
        assert_harmless(made)
    assert not re.match("\\s*[=+@-]|[\t\r\n]", csv_cell(text)) and "\n" not in markdown(text)
    assert not re.search(r"(?<!\\)[|`*<\[\]$~]", markdown(text))


def test_ordinary_text_stays_as_it_is():
    for text in ("What is 3 - 5?", "ein Übermaß, 日本語 العربية", "👩\u200d👩\u200d👧", "tab\tand\nline"):
        assert plain(text) == csv_cell(text) == text
    assert markdown("ein Übermaß, snake_case (3 - 5)") == "ein Übermaß, snake_case (3 - 5)"
    assert csv_cell(-1.5) == -1.5 and csv_cell(None) is None


# ---- the terminal


def test_what_is_printed(capsys: pytest.CaptureFixture[str]):
    log.screen().print(EVERYTHING)
    show_answer(Answer(EVERYTHING, 3, [1, 2], captions=[EVERYTHING, "x"]), [EVERYTHING, "y"])
    said = capsys.readouterr().out
    assert_harmless(said)
    assert bare(plain(EVERYTHING)) in bare(said)
    handler = next(one for one in log.get_logger("langdc").handlers if isinstance(one, RichHandler))
    stream = io.StringIO()
    log.console.file = stream
    try:
        record = logging.LogRecord("langdc", logging.WARNING, __file__, 1, "%s is wrong", (EVERYTHING,), None)
        handler.handle(record)  # not through a logger: what pytest keeps of it xdist cannot report
        assert list(log.track("ab", 2, EVERYTHING)) == ["a", "b"]
        Bar(EVERYTHING).close()
    finally:
        log.console.file = None  # standard error, whatever that is then  # pyright: ignore[reportAttributeAccessIssue]
    assert_harmless(stream.getvalue())
    assert bare(plain(EVERYTHING)) in bare(stream.getvalue())


def test_errors(capsys: pytest.CaptureFixture[str]):
    for text in HOSTILE:
        assert main(["train", f"no {text}".replace("=", ""), "--traceback"]) in (2, 3)
        assert_harmless(capsys.readouterr().err)


# ---- pages and tables


def card(text: str) -> dict[str, Any]:
    model = {"compressor": {"name": text}, "backbone": {"name": text}}
    manifest = {"model": model, "stage": text, "training": {"steps": 3}, "data_sha256": text, "parts": {text: text}}
    return {"title": text, "manifest": manifest, "parts": {"captioner": text}, "adapter": False}


def test_the_card_of_an_export_is_code_where_it_names_things():
    made = render("langdc", "convert/card.md", **card(EVERYTHING))
    outside = re.sub(r"```.*?```|`[^`\n]*`", "", made, flags=re.DOTALL)
    assert not re.search(r"<script|<img|\[e\]|\*\*b", outside)
    assert made.count("```") == 2


def evaluation(folder: Path) -> Path:
    """Made-up results whose kinds, questions, answers, captions, targets, reasons and replies are hostile."""
    rows = {
        "learned": {"right": 30, "tokens": lambda density: 4 * density, "captions": True, "failed": (3, 0)},
        "pool": {"right": 20, "tokens": lambda _: 8},
    }
    run = made_up.write(folder / "=1+1 <b>" / "=run", rows, reference="pool")
    for path in run.glob("results/*/0.jsonl"):
        lines = jsonl.read(path)
        for number, line in enumerate(lines):
            text = HOSTILE[number % len(HOSTILE)]
            if line["type"] == "answer":
                video = HOSTILE[int(line["video"][1:]) % len(HOSTILE)]
                line |= {"kind": video, "question": text, "expected": text}
                line |= {"answer": text} if line["answer"] else {"reason": EVERYTHING}
            elif line["type"] == "video":
                line |= {"captions": [text, EVERYTHING] if line["captions"] else None, "targets": [EVERYTHING, text]}
        jsonl.write_lines(path, lines)
    header = jsonl.read_json(run / "header.json")
    header |= {"target_kinds": list(HOSTILE), "note": EVERYTHING}
    jsonl.write_json(run / "header.json", header)
    return run


def test_reports(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    run = evaluation(tmp_path)
    assert report([str(run), "--no-frames"]) == 0
    assert_harmless(capsys.readouterr().out)
    for name in ("report.html", "table.md", "table.csv"):
        assert_harmless((run / name).read_text())
    table = (run / "table.md").read_text()
    lines = [line for line in table.splitlines() if line.startswith("|")]
    assert len({len(re.findall(r"(?<!\\)\|", line)) for line in lines}) == 1 and "<" not in table
    for line in csv.reader(io.StringIO((run / "table.csv").read_text())):
        assert not any(re.match(r"\s*[=+@]|-\D", cell) for cell in line)
    with browser.opened(run / "report.html") as (page, heard):
        page.wait_for_timeout(300)
        assert heard == [] and page.title() == "LangDC evaluation"
        assert page.locator("script").count() == 1 and page.locator("img[src=x], b[onmouseover]").count() == 0
        said = bare(page.content())
        seen = bare(page.evaluate("document.body.textContent"))
        assert all(bare(plain(text)) in seen for text in HOSTILE if bare(plain(text)))
        assert "<script>alert" not in said


def test_comparisons(tmp_path: Path):
    answer = Answer(EVERYTHING, 3, [1, 2], seconds={"prefill": 0.1})
    found = [Compared(EVERYTHING, answer), Compared("x", trouble=EVERYTHING)]
    frames = torch.zeros(2, 3, 8, 8, dtype=torch.uint8)
    jsonl.write_text(tmp_path / "page.html", compare_page(EVERYTHING, EVERYTHING, frames, found, 9))
    assert_harmless((tmp_path / "page.html").read_text())
    with browser.opened(tmp_path / "page.html") as (page, heard):
        page.wait_for_timeout(300)
        assert heard == [] and page.locator("script, img[src=x]").count() == 0
        assert bare(page.locator("h1").inner_text()) == bare(plain(EVERYTHING))


def test_data_checks(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    data = tmp_path / "=1+1 <b> [red] a|b.jsonl"
    records = [{"id": f"{n}{text}", "video": text.replace("\0", "")} for n, text in enumerate(HOSTILE)]
    records += [
        {"id": "options", "video": "x", "questions": [{"kind": text, "question": text, "answer": text}]}
        for text in HOSTILE
    ]
    data.write_text("".join(json.dumps(record) + "\n" for record in records))
    assert main(["data", "check", str(data)]) == 1
    assert_harmless(capsys.readouterr().out)
    made = data.with_suffix(".check") / "report.html"
    assert_harmless(made.read_text())
    with browser.opened(made) as (page, heard):
        page.wait_for_timeout(300)
        assert heard == [] and page.locator("script").count() == 1 and page.locator("img, b").count() == 0


def test_every_page_and_console_comes_from_one_place():
    """Other consoles and templates would show text as it comes."""
    package = Path(log.__file__).parent
    for path in package.rglob("*.py"):
        text = re.sub(r"Environment\([^)]*\)\.parse|SandboxedEnvironment\(", "", path.read_text())  # show no text
        assert path.name == "text.py" or "Environment(" not in text, path
        assert path.name == "log.py" or not re.search(r"\bConsole\((?!stderr=True\)\))", text), path
