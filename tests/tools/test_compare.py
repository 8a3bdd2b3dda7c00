"""`langdc compare` and `langdc ask --compressor`, on a real file and a tiny stock checkpoint."""

import base64
import html
import io
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from langdc.cli import main
from langdc.layercompressors import layercompressors
from langdc.tools.compare import strip
from tests import imagetext, stock

QUESTION = "what is in the video ?"


@pytest.fixture(scope="module")
def mp4(tmp_path_factory) -> Path:
    return stock.mp4(tmp_path_factory.mktemp("clips"), count=16, fps=8)


def command(name: str, mp4: Path, *more: str, model: str = "qwen2_5_vl") -> int:
    return main([name, str(mp4), QUESTION, "--model", stock.folder(model), "--max-new-tokens", "3", *more])


def test_every_compressor_gets_a_line_and_a_strip(mp4: Path, tmp_path: Path, capsys) -> None:
    page = tmp_path / "out.html"
    assert command("compare", mp4, "--keep", "0.25", "--frames", "8", "--out", str(page)) == 0
    said, text = capsys.readouterr().out, page.read_text()
    for name in ("identity", "random", "uniform", "vidcom2", "dpselect", "fastvid", "pivotkv", "flexreduc"):
        assert re.search(rf"^{name}\s+\d+\s+\d+", said, re.MULTILINE), said
        assert f"<h2>{name} " in text
    refused = {*layercompressors.names()} - {"framefusion"}  # which drops before the first layer
    assert text.count("data:image/jpeg;base64,") == text.count("<h2>") - 1 - len(refused), (
        "all but ma_lmm, whose tokens are new, and those that let one of three layers read all"
    )
    assert "dycoke_decoding" not in said, "it drops nothing of a prompt"
    assert "http" not in text.replace("http-equiv", "")


def test_chosen_compressors_and_one_that_cannot_serve(mp4: Path, tmp_path: Path, capsys) -> None:
    page = tmp_path / "out.html"
    more = ("--keep", "0.5", "--compressors", "vidcom2", "langdc", "--out", str(page))
    assert command("compare", mp4, *more, model="qwen3_vl") == 0
    said = capsys.readouterr().out
    trouble = "'langdc' has weights of its own"
    assert re.search(r"^vidcom2\s+\d+\s+\d+", said, re.MULTILINE) and trouble in " ".join(said.split())
    assert "pivotkv" not in said and trouble in html.unescape(page.read_text())


def test_no_compressor_answers_with_random_weights(mp4: Path, tmp_path: Path, capsys) -> None:
    more = ("--keep", "0.5", "--compressors", "selector", "--out", str(tmp_path / "out.html"))
    assert command("compare", mp4, *more) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "'selector' has weights of its own" in said and "would be random" in said


def test_a_strip_is_dark_where_patches_were_dropped() -> None:
    frames = torch.full((4, 3, 32, 48), 200, dtype=torch.uint8)
    kept = torch.zeros(2, 2, 3, dtype=torch.bool)
    kept[0, 0] = True
    kept[1, :, 2] = True
    image = np.asarray(strip(frames, kept))
    height, width = image.shape[0], image.shape[1] // 2
    lit = image[:, :, 0] > 100
    assert lit[: height // 2, :width].all() and not lit[height // 2 :, :width].any()
    assert lit[:, width + 2 * width // 3 + 2 :].all() and not lit[:, width : width + 2 * width // 3 - 2].any()


def test_layer_compressors_by_name_and_what_one_cannot_meet(mp4: Path, tmp_path: Path, capsys) -> None:
    page = tmp_path / "out.html"
    more = ("--keep", "0.6", "--compressors", "fastv", "layers:pyramiddrop", "holitom_inner", "--out", str(page))
    assert command("compare", mp4, *more) == 0
    said, text = " ".join(capsys.readouterr().out.split()), page.read_text()
    assert re.search(r"fastv \d+ \d+", said) and re.search(r"layers:pyramiddrop \d+ \d+", said), said
    assert text.count("data:image/jpeg;base64,") == 3  # with the uncompressed
    assert "HoliTomInner lets 2 of 3 layers read all" in said


def test_ask_drops_rows_between_layers(mp4: Path, capsys) -> None:
    assert command("ask", mp4, "--compressor", "fastv", "--keep", "0.5") == 0
    assert "keys per layer" in capsys.readouterr().out
    assert command("ask", mp4, "--compressor", "fastv", "--keep", "0.1") == 2
    assert "Set keep to more than" in " ".join(capsys.readouterr().err.split())


def test_pictures_of_the_page_can_be_opened(mp4: Path, tmp_path: Path) -> None:
    page = tmp_path / "out.html"
    assert command("compare", mp4, "--tokens", "20", "--compressors", "random", "--out", str(page)) == 0
    for data in re.findall(r"base64,([^\"]+)", page.read_text()):
        assert Image.open(io.BytesIO(base64.b64decode(data))).size[1] % 96 == 0


def test_ask_says_tokens_before_and_after(mp4: Path, capsys) -> None:
    assert command("ask", mp4, "--compressor", "vidcom2", "--keep", "0.25", "--frames", "8") == 0
    said = capsys.readouterr().out
    after, before = map(int, re.search(r"(\d+) of (\d+) video tokens", said).groups())
    assert after <= before // 4 + 1
    assert all(stage in said for stage in ("decode", "encode", "compress", "prefill", "generate"))


def test_ask_drops_keys_by_name_or_beside_another(mp4: Path, capsys) -> None:
    assert command("ask", mp4, "--compressor", "pivotkv", "--keep", "0.5") == 0
    assert "keys per layer" in capsys.readouterr().out
    assert command("ask", mp4, "--kv", "kv:random", "--keep", "0.5") == 0
    assert "keys per layer" in capsys.readouterr().out
    assert command("ask", mp4, "--kv", "fastv", "--keep", "0.5") == 2
    assert "It works elsewhere; give it by --compressor" in capsys.readouterr().err
    for first, kv in (("dpselect", "pivotkv"), ("fastv", "snapkv")):
        assert command("ask", mp4, "--compressor", first, "--kv", kv, "--keep", "0.5") == 0
        assert "keys per layer" in capsys.readouterr().out


def test_frames_are_chosen_for_the_question(mp4: Path, tmp_path: Path, capsys) -> None:
    chosen = f"{{name: top, scorer: {{model: {imagetext.folder(tmp_path / 'clip')}}}, fps: 4}}"
    words = ("--frames", "4", "--select", chosen, "--keep", "0.5")
    assert command("ask", mp4, *words, "--compressor", "random") == 0
    assert "select" in capsys.readouterr().out
    more = ("--compressors", "random", "--out", str(tmp_path / "out.html"))
    assert command("compare", mp4, *words, *more) == 0


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--keep", "0.5"), "needs a compressor"),
        (("--compressor", "vidcom3", "--keep", "0.5"), "Did you mean 'vidcom2'"),
        (("--compressor", "vidcom2"), "A budget is either keep"),
        (("--compressor", "vidcom2", "--keep", "1.5"), "not in (0, 1]"),
        (("--compressor", "pivotkv", "--kv", "snapkv", "--keep", "0.5"), "leave out --kv"),
        (("--compressor", "fastv", "--kv", "pivotkv", "--keep", "0.5"), "Set its compact_positions to false"),
        (("--select", "akks"), "Did you mean 'aks'"),
        (("--select", "[1]"), "--select [1]: give a name, or {name: ..., settings}"),
        (("--compressor", "layers:fast", "--keep", "0.5"), "Did you mean 'fastv'"),
        (("--backbone", "llava_video"), "this backbone is for"),
    ],
)
def test_mistakes_are_told_in_one_screen(mp4: Path, capsys, more: tuple[str, ...], said: str) -> None:
    assert command("ask", mp4, *more) == 2
    assert said in capsys.readouterr().err.replace("\n", " ")


def test_compare_needs_a_budget(mp4: Path, capsys) -> None:
    assert command("compare", mp4) == 2
    assert "--keep or --tokens" in capsys.readouterr().err
