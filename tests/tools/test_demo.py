"""What the page of `langdc demo` shows, without a browser; `tests/tools/test_demo_page.py` opens it in one."""

import base64
import io
import re
import socket
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from langdc.cli import main
from langdc.pipeline import VideoLM
from langdc.tools import demo
from langdc.tools.compare import Compared
from langdc.types import Answer
from tests import stock

QUESTION = "what is in the video ?"


@pytest.fixture(scope="module")
def mp4(tmp_path_factory) -> str:
    return str(stock.mp4(tmp_path_factory.mktemp("clips"), count=16, fps=8))


@pytest.fixture(scope="module")
def lm() -> VideoLM:
    return VideoLM.from_pretrained(stock.folder("qwen2_5_vl"), backbone={"frames": 8})


def pictures(page: str) -> list[np.ndarray]:
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(data)))) for data in re.findall(r"base64,([^\"]+)", page)]


def respond(lm: VideoLM, path: str | None, question: str, *labels: str, keep: float = 0.25) -> str:
    known = demo._methods(lm)
    return demo._respond(lm, path, question, {label: known[label] for label in labels}, keep, 3)


def test_methods_read_one_video_that_is_decoded_and_encoded_once(mp4: str, monkeypatch) -> None:
    lm, calls = VideoLM.from_pretrained(stock.folder("llava_onevision"), backbone={"frames": 8}), []
    assert lm.model.backbone.has_saliency
    encode = type(lm.model.backbone).encode
    monkeypatch.setattr(
        type(lm.model.backbone), "encode", lambda self, *given: calls.append(given) or encode(self, *given)
    )
    names = {"all tokens": "", "visionzip": "visionzip", "vidcom2": "vidcom2"}
    frames, found = demo._answers(lm, mp4, QUESTION, names, 0.25, max_new_tokens=3)
    assert len(calls) == 1, "also where one of them needs the encoder's attention"
    assert [one.name for one in found] == list(names) and len(frames) == 8
    whole, *others = [one.answer for one in found]
    assert whole.text == lm.ask(mp4, QUESTION, max_new_tokens=3).text
    assert whole.tokens == whole.tokens_before + 1, "and the newline behind them"
    assert all(abs(other.tokens / whole.tokens - 0.25) < 0.05 for other in others)


def test_segments_have_frames_tokens_and_dark_patches(lm: VideoLM, mp4: str) -> None:
    page = respond(lm, mp4, QUESTION, "all tokens", "uniform")
    shown = pictures(page)
    steps = len(shown) // 2
    assert steps == 4, "8 frames, 2 a step"
    bright, dark = (np.mean([picture.mean() for picture in half]) for half in (shown[:steps], shown[steps:]))
    assert dark < 0.6 * bright
    tokens = [int(number) for number in re.findall(r"</span>\s*(\d+)", page)]
    read = [int(number.replace(",", "")) for number in re.findall(r"([\d,]+) of [\d,]+ tokens read", page)]
    assert [sum(tokens[:steps]), sum(tokens[steps:])] == read
    for stage in ("decode", "encode", "compress", "prefill", "generate"):
        assert page.count(f"<dt>{stage}</dt>") == 2


def test_each_segment_shows_its_own_frames() -> None:
    frames = torch.arange(8, dtype=torch.uint8)[:, None, None, None].expand(8, 3, 16, 16) * 30
    answer = Answer("yes", tokens=6, segment_tokens=[4, 0, 2], captions=["a", "", "<b>c</b>"], tokens_before=64)
    kept = torch.ones(5, 1, 1)
    page = demo._shown(frames, [Compared("two steps a segment", answer, kept, steps=2)])
    first, second, third = (picture[48].mean(1) for picture in pictures(page))
    assert [len(row) for row in (first, second, third)] == [2 * 96, 2 * 96, 96]
    near = {"abs": 3}
    assert [first[48], first[144]] == pytest.approx([0, 30], **near)
    assert [second[48], second[144]] == pytest.approx([90, 120], **near)
    assert third[48] == pytest.approx(180, **near)
    assert re.findall(r"</span>\s*(.+)</li>", page) == ["4 &middot; a", "0", "2 &middot; &lt;b&gt;c&lt;/b&gt;"]
    assert [float(width) for width in re.findall(r"width: ([\d.]+)%\"", page)][:3] == [100, 0, 50]


def test_a_long_video_shows_its_first_segments_and_says_how_many_follow() -> None:
    answer = Answer("yes", tokens=40, segment_tokens=[1] * 40, tokens_before=64)
    page = demo._shown(torch.zeros(40, 3, 8, 8, dtype=torch.uint8), [Compared("many", answer)])
    assert page.count("<li>") == 32 and "and 8 more segments" in page


def test_learned_captions_stand_beside_their_segments() -> None:
    lm = VideoLM.from_pretrained("sample:langdc")
    known = list(demo._methods(lm))
    assert known[0] == "langdc, as trained" and "snapkv" in known
    assert "vidcom2" not in known, "its projectors were not trained"


def test_methods_are_those_that_serve_the_model(lm: VideoLM) -> None:
    known = list(demo._methods(lm))
    assert known[0] == "all tokens" and {"vidcom2", "fastv", "snapkv", "kv:random"} <= {*known}
    assert not {"langdc", "selector", "resampler", "identity"} & {*known}


def test_what_stops_one_method_leaves_the_other(lm: VideoLM, mp4: str) -> None:
    page = respond(lm, mp4, QUESTION, "fastv", "vidcom2", keep=0.1)
    assert "Set keep to more than" in page and page.count('class="answer"') == 1
    assert page.index("fastv") < page.index("vidcom2")


def test_a_mistake_is_told_and_its_traceback_goes_to_the_terminal(lm: VideoLM, mp4: str, monkeypatch, capsys) -> None:
    def broken(*given, **more):
        raise TypeError("<odd>")

    monkeypatch.setattr(VideoLM, "open", broken)
    page = respond(lm, mp4, QUESTION, "all tokens")
    assert "TypeError: &lt;odd&gt;" in page and "Traceback" not in page
    assert "in broken" in capsys.readouterr().err


def test_mistakes_are_sentences(lm: VideoLM, mp4: str, tmp_path: Path) -> None:
    bad = tmp_path / "bad.mp4"
    bad.write_bytes(b"no video" * 99)
    for path, question, said in (
        (None, QUESTION, "There is no video."),
        (mp4, "  ", "The question is empty"),
        (str(bad), QUESTION, ">bad.mp4: cannot be read as a video"),
    ):
        page = respond(lm, path, question, "all tokens")
        assert said in page and 'role="alert"' in page and str(tmp_path) not in page


def test_the_command_says_what_to_install(monkeypatch, capsys) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert main(["demo"]) == 2
    assert "pip install 'langdc[demo]'" in capsys.readouterr().err


def test_an_address_that_is_taken_or_elsewhere_is_told_at_once(capsys) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert main(["demo", "--port", port]) == 2
    assert f"--host 127.0.0.1 --port {port}: the page cannot be served there" in capsys.readouterr().err
    for words in (["--port", "70000"], ["--host", "192.0.2.1"]):
        assert main(["demo", *words]) == 2
        assert "the page cannot be served there" in capsys.readouterr().err


def test_the_budget_is_one_that_the_page_can_show(capsys) -> None:
    assert main(["demo", "--keep", "0.01"]) == 2
    assert "give 0.05 to 1" in capsys.readouterr().err
