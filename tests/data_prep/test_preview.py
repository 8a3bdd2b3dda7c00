"""The preview page shows what a training reads of records, in a real browser too."""

import base64
import html
import io
import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image

from langdc.backbones.chat import IGNORED
from langdc.cli import door
from langdc.config import ModelConfig, RunConfig
from langdc.data.records import Record, read_records, write_records
from langdc.density import densities
from langdc.prepare.preview import _nearest as nearest
from langdc.types import VideoTokens
from langdc.video import write_video
from tests import browser, stock, tiny
from tests.contract import grid
from tests.train import small

main = door("data preview")
EVIL = "<script>alert(1)</script><img src=x onerror=alert(2)> & \u202egnitirw"
SHOWN = EVIL.replace("\u202e", "")


def saved(folder: Path, model: ModelConfig, *files: str, **changes: Any) -> tuple[Path, RunConfig]:
    """A config as a file."""
    config = small.run_config(model, *files, **changes)
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    return path, config


def page_of(path: Path, *words: str, code: int = 0) -> str:
    """The page of a config, with text as it was before it was escaped."""
    out = path.with_suffix(".html")
    assert main([str(path), *words, "--out", str(out)]) == code
    return out.read_text()


def prompts(page: str) -> list[str]:
    return re.findall(r'<div class="prompt">(.*?)</div>', page, re.DOTALL)


def plain(markup: str) -> str:
    return html.unescape(re.sub("<[^>]*>", "", markup))


def bare(text: Any) -> str:
    return "".join(str(text).split())


def group(pattern: str, text: str) -> str:
    """What a pattern's group matches."""
    found = re.search(pattern, text, re.DOTALL)
    assert found is not None, text
    return found[1]


def langdc(folder: Path, *files: str, **changes: Any) -> tuple[Path, RunConfig]:
    learned = ["compressor.post_projector.*"]
    return saved(folder, tiny.config(max_soft_tokens=32), *files, **{"trainable": learned, **changes})


def talk(folder: Path, name: str = "talk", said: Sequence[tuple[str, str]] = (), **changes: Any) -> str:
    """A file with a conversation about two clips of a video and an image."""
    data = small.folder()
    video, image = (str(data / str(read_records(data / f"{kind}.jsonl")[0].file)) for kind in ("train", "images"))
    media = [{"video": video, "end": 1.0}, {"video": video, "start": 1.0}, {"image": image}]
    said = said or [
        ("user", f"<video> and <video> {EVIL}"),
        ("assistant", "two"),
        ("user", "<image> ?"),
        ("assistant", "a <b>"),
    ]
    messages = [{"role": role, "content": text} for role, text in said]
    record = Record.model_validate({"id": EVIL, "media": media, "messages": messages, **changes})
    write_records(folder / f"{name}.jsonl", [record])
    return str(folder / f"{name}.jsonl")


def test_it_shows_the_prompts_and_tokens_of_the_trainings_batches(tmp_path: Path) -> None:
    path, config = langdc(tmp_path, questions_per_video=3)
    page = page_of(path, "--records", "2")
    data = small.data_of(tiny.model(max_soft_tokens=32), config)
    shown = [data[0], data[3]]  # evenly spaced out of 6
    assert re.findall(r"<h2><bdi>(.*?)</bdi>", page) == [sample.record.id for sample in shown]
    tokenizer = data.model.backbone.tokenizer
    for sample, found in zip(shown, prompts(page), strict=True):
        batch = data.collate([sample])["batch"]
        (prompt,), (captions,) = batch.prompts, batch.targets["captions"]
        assert f"video 1: {sum(map(len, captions))} tokens" in found
        learned = re.findall(r'<span class="learned">(.*?</span>)</span>', found, re.DOTALL)
        assert bare("".join(map(plain, learned))) == bare(tokenizer.decode(prompt.ids[prompt.labels != IGNORED]))
        text = re.sub(r'<span class="(slot|number)">.*?</span>', "", found)
        assert bare(plain(text)) == bare(tokenizer.decode(prompt.ids))
        segments = sample.record.segments
        start = page.index(f"<h2><bdi>{sample.record.id}")
        parts = re.findall(r'<li class="segment">.*?</li>', page[start:], re.DOTALL)[: len(segments)]
        for part, ids, segment, density in zip(parts, captions, segments, densities(segments), strict=True):
            assert f"</small> <bdi>{html.escape(segment.caption)}</bdi>" in part
            assert f"<b>{density}</b> <small>density</small>" in part and f"<b>{len(ids)}</b> <small>token" in part
    assert "http:" not in page and "https:" not in page


def test_frames_are_those_that_are_read_with_their_times(tmp_path: Path) -> None:
    path, config = langdc(tmp_path)
    page = page_of(path, "--records", "1")
    data = small.data_of(tiny.model(max_soft_tokens=32), config.model_copy(update={"feature_memory": 0.0}))
    (frames,) = data.collate([data[0]])["batch"].frames
    pictures = re.findall(r'alt="frame at ([\d.]+) seconds" src="data:image/jpeg;base64,([^"]+)"', page)
    assert [time for time, _ in pictures] == [f"{second:.2f}" for second in frames.seconds.tolist()]
    for (_, url), pixels in zip(pictures, frames.pixels, strict=True):
        shown = torch.frombuffer(bytearray(Image.open(io.BytesIO(base64.b64decode(url))).tobytes()), dtype=torch.uint8)
        assert (shown.view(*pixels.shape[1:], 3).permute(2, 0, 1).float() - pixels).abs().mean() < 12


def test_without_weights_what_shapes_tell_is_the_same(tmp_path: Path) -> None:
    path, _ = langdc(tmp_path)
    words = ("--records", "2")
    whole, shapes = (page_of(path, *words, *more) for more in ((), ("--no-weights",)))
    assert prompts(whole) == prompts(shapes) and len(prompts(whole)) == 2
    cards = [re.findall(r'class="card"><strong>(.*?)</strong>', page) for page in (whole, shapes)]
    assert cards[0] == cards[1] and "not known" not in cards[0]


def test_without_weights_a_checkpoint_needs_none(tmp_path: Path) -> None:
    folder = tmp_path / "small"
    shutil.copytree(stock.folder("qwen2_5_vl"), folder, ignore=shutil.ignore_patterns("*.safetensors"))
    model = grid.model_config("qwen2_5_vl", "vidcom2").model_dump()
    model["backbone"]["source"] = str(folder)
    path, _ = saved(tmp_path, ModelConfig.model_validate(model), lora={"rank": 2, "alpha": 2})
    page = page_of(path, "--records", "1", "--no-weights")
    whole = page_of(path, f"model.backbone.source={stock.folder('qwen2_5_vl')}", "--records", "1")
    before = [group(r"32 frames of \d+ × \d+ ·\s+([\d,]+) →", each) for each in (page, whole)]
    assert before[0] == before[1]
    assert "No weights were read" in page and "not known" in page and "not known" not in whole


@pytest.mark.parametrize("backbone", ["qwen2_5_vl", "qwen3_vl"])
def test_conversations_about_several_media(backbone: str, tmp_path: Path) -> None:
    model = grid.model_config(backbone, "identity")
    path, config = saved(tmp_path, model, talk(tmp_path), lora={"rank": 2, "alpha": 2})
    page = page_of(path)
    (found,) = prompts(page)
    slots = re.findall(r'<span class="slot">(.*?)</span>', found)
    names = [re.split("[,:]", slot)[0] for slot in slots]
    assert list(dict.fromkeys(names)) == ["video 1", "video 2", "image 3"]
    data = small.data_of(grid.build(backbone, "identity")[0], config)
    batch = data.collate([data[0]])["batch"]
    sizes = [len(tokens) for tokens in data.model.compress(data.model.features(batch)).tokens]
    counts = [int(group(r": ([\d,]+) token", slot).replace(",", "")) for slot in slots]
    assert sum(counts) == sum(sizes) and counts[-1] == sizes[-1]
    learned = re.findall(r'<span class="learned">(.*?</span>)</span>', found, re.DOTALL)
    assert [plain(text) for text in learned] == ["two<|im_end|>", "a <b><|im_end|>"]
    assert SHOWN in plain(found)


def test_a_trained_model_shows_what_it_writes_and_the_nearest_words(tmp_path: Path) -> None:
    path, _ = langdc(tmp_path)
    page = page_of(path, "--records", "1", "--checkpoint", "sample:langdc")
    record = read_records(small.folder() / "train.jsonl")[0]
    parts = re.findall(r'<li class="segment">.*?(?=<li class="segment">|</section>)', page, re.DOTALL)
    assert len(parts) == len(record.segments) == 4
    for part, segment in zip(parts, record.segments, strict=True):
        said = plain(group(r"<small>written</small>(.*?)</p>", part)).split()
        used = int(group(r"<b>(\d+)</b> <small>tokens? in use", part))
        nearest_words = re.findall(r"<li title=.*?<b>(.*?)</b>", part)
        assert len(nearest_words) == used and used >= len(said)
        # the shipped model describes its own kind of videos, in soft tokens that lie near their words
        assert set(segment.caption.split()) & set(said) & set(map(html.unescape, nearest_words))


def test_nearest_words_are_those_with_the_largest_cosine() -> None:
    model = tiny.model()
    embeddings: Any = model.backbone.language_model.get_input_embeddings()
    table = embeddings.weight.detach()
    rows = torch.tensor([5, 40, 7])
    tokens = VideoTokens(3 * table[rows], torch.tensor([0, 1, 1]))
    first, second = nearest(model, tokens, 2)
    assert [len(first), len(second)] == [1, 2]
    for (word, cosine), row in zip([first[0][0], second[0][0], second[1][0]], rows.tolist(), strict=True):
        assert word == (str(model.backbone.tokenizer.decode([row])).strip() or f"id {row}") and cosine == pytest.approx(
            1
        )
    near = torch.cosine_similarity(table, table[5][None]).topk(3).values.tolist()
    assert [cosine for _, cosine in first[0]] == pytest.approx(near, abs=1e-5)


def test_what_is_lost_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    short = [[[[90 * n] * 3] * 32] * 32 for n in range(3)]
    write_video(tmp_path / "short.mp4", torch.tensor(short, dtype=torch.uint8).numpy(), 8)
    told = [{"caption": "a red ring left of a blue square"}] * 4
    asked = [{"kind": "say", "question": "say red", "answer": "red"}]
    records = [
        {"id": "short", "video": "short.mp4", "segments": told, "questions": asked},
        {"id": "damaged", "video": "damaged.mp4", "segments": told, "questions": asked},
    ]
    (tmp_path / "damaged.mp4").write_bytes(b"no video")
    write_records(tmp_path / "own.jsonl", [Record.model_validate(each) for each in records])
    path, _ = saved(tmp_path, tiny.config(), str(tmp_path / "own.jsonl"), trainable=["compressor.post_projector.*"])
    page = page_of(path, code=1)
    said = capsys.readouterr().out
    for text in (plain(page), said):
        assert "video 1 has too few frames: 13 of 16 are repeats" in text
        assert "segment 1: the caption is cut to 6 tokens: 'a red ring left of" in text
        assert "cannot be read: " in text and "damaged.mp4" in text
    assert "own.jsonl: line 2 (id 'damaged'): cannot be read" in said


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--records", "0"], "--records 0: give at least 1"),
        (["--ids", "train-00000O"], "no record with the id 'train-00000O'; there is 'train-"),
        (["--out", "no/such/page.html"], "give a file in a folder that exists"),
        (
            ["start=runs/none"],
            "There is no runs/none to start from. Train it first, or give start=null or --no-weights",
        ),
        (["--checkpoint", "sample:langdc", "--no-weights"], "not allowed with"),
    ],
)
def test_mistakes_are_told(words: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, _ = langdc(tmp_path)
    try:
        code = main([str(path), *words])
    except SystemExit as stopped:
        code = stopped.code
    assert code == 2 and said in capsys.readouterr().err
    assert not (tmp_path / "preview.html").exists()


def test_one_run_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sample/langdc"]) == 2
    assert "A preview shows one run; given: " in capsys.readouterr().err


@pytest.mark.slow
def test_the_page_in_a_browser(tmp_path: Path) -> None:
    """Text of users is shown as it is, pictures load, nothing is fetched, and the page never scrolls sideways."""
    model = grid.model_config("qwen2_5_vl", "vidcom2")
    path, _ = saved(tmp_path, model, talk(tmp_path), str(small.folder() / "train.jsonl"), lora={"rank": 2, "alpha": 2})
    page_of(path)
    with browser.opened(path.with_suffix(".html")) as (page, heard):
        page.wait_for_timeout(300)
        assert page.title() == f"{path}: data preview" and heard == []
        assert page.locator("section h2").first.inner_text() == SHOWN == page.locator("nav bdi").first.inner_text()
        assert SHOWN in page.locator(".prompt").first.inner_text()
        assert page.locator("script").count() == 0 and page.locator("img[src=x]").count() == 0
        loaded = page.locator("img").evaluate_all("all => all.map(one => one.complete && one.naturalWidth > 0)")
        assert len(loaded) > 20 and all(loaded)
        colour = "e => getComputedStyle(e).backgroundColor"
        learned, other = (
            page.locator(f".prompt > span{which}").first.evaluate(colour) for which in (".learned", ":not([class])")
        )
        assert learned != other
        page.locator("nav a").nth(2).click()
        assert page.locator("#record-3").evaluate("e => Math.abs(e.getBoundingClientRect().top) < 900")
        for width in (360, 1280):
            page.set_viewport_size({"width": width, "height": 900})
            assert page.evaluate("document.documentElement.scrollWidth") <= width
        papers = set()
        for scheme in ("light", "dark"):
            page.emulate_media(color_scheme=scheme)  # pyright: ignore[reportArgumentType]
            papers.add(page.locator("body").evaluate(colour))
        assert len(papers) == 2 and heard == []


def test_records_of_a_list_are_not_shown(tmp_path: Path, capsys) -> None:
    path, config = saved(tmp_path, tiny.config("pool"), kinds=["count"], trainable=["backbone.projectors.*"])
    (data,) = config.train.files
    first = read_records(data)[0]
    (tmp_path / "q.jsonl").write_text(json.dumps({"file": str(data), "line": first.line, "id": first.id}) + "\n")
    page_of(path, "--no-weights", "--quarantine", str(tmp_path / "q.jsonl"))
    said = capsys.readouterr().out
    assert f"Loading the model of {path} ..." in said and "5 of 5 records" in said
