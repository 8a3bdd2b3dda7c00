"""`langdc probe` on sample videos: what stands for objects, the table, the file, the page, and what it refuses."""

import json
from pathlib import Path

import pytest
import torch

from langdc import VideoLM
from langdc.cli import main
from langdc.data.records import Record, read_records, write_records
from langdc.sample.dataset import make_dataset
from langdc.tools.probe import _Found, _Place
from langdc.types import Context
from tests import stock
from tests.browser import opened


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("probe") / "set"
    assert make_dataset(folder, {"test": 14}, images=0, workers=1)
    return folder / "test.jsonl"


def test_the_table_the_file_and_the_page(data: Path, tmp_path: Path, capsys) -> None:
    out = tmp_path / "new" / "out"
    assert main(["probe", "sample:langdc", "--data", str(data), "--out", str(out)]) == 0
    said, found = capsys.readouterr().out, json.loads((out / "probe.json").read_text())
    objects, segments = found["units"]
    assert objects["of"] == "object" and segments["of"] == "segment" and found["videos"] == 14
    assert [place["name"] for place in objects["places"]].count("soft") == 2
    assert {place["group"] for place in segments["places"]} == {"encoder", "langdc"}
    rows = {row["label"]: row for row in objects["labels"]}
    names = {"colour", "shape", "motion", "start", "background", "objects in the segment"}
    assert rows.keys() == names | {"left or right", "upper or lower", "larger than the median"}
    assert all(len(row["scores"]) == len(objects["places"]) for row in rows.values())
    first = [p == {"group": "langdc, at its first token", "name": "layer 0", "without": 0} for p in objects["places"]]
    assert rows["colour"]["scores"][first.index(True)]["accuracy"] > 95, "a word says itself"
    assert rows["motion"]["scores"][first.index(True)]["accuracy"] < 60, "a later one is not read yet"
    assert "colour, 6" in said and "no token, %" in said
    with opened(out / "probe.html") as (page, heard):
        for width in (360, 1440):
            for scheme in ("light", "dark"):
                page.emulate_media(color_scheme=scheme)
                page.set_viewport_size({"width": width, "height": 800})
                assert page.evaluate("document.documentElement.scrollWidth") <= width
        cells = page.locator("td.cell").all_inner_texts()
        assert len(cells) == sum(len(row["scores"]) for unit in found["units"] for row in unit["labels"])
        colours = {
            page.locator("td.cell").nth(i).evaluate("e => getComputedStyle(e).backgroundColor") for i in (0, 1, 2)
        }
        assert len(colours) > 1 and not heard


def test_an_object_is_the_weighted_mean_of_the_tokens_that_show_it(data: Path) -> None:
    record = next(record for record in read_records(data) if record.segments[1].objects)
    lm = VideoLM.from_pretrained(stock.folder("qwen2_5_vl"), compressor={"name": "random", "keep": 0.3}, device="cpu")
    found = _Found([record])
    found.add(record, data.parent, {"random": lm})
    video = lm.open(data.parent / record.video)
    tokens, (steps, rows, columns) = video.tokens, video.features.projected[0].values.shape[:3]
    slow, lost = [], 0
    for number, segment in enumerate(record.segments):
        for each in segment.objects:
            weights = torch.zeros(len(tokens))
            for index, place in enumerate(tokens.source.tolist()):
                step, row, column = place // (rows * columns), place // columns % rows, place % columns
                for at in range(160 * step // steps, 160 * (step + 1) // steps):  # 160 moments, 10 to a frame
                    if at // 40 == number and (box := each.boxes[at // 10 % 4]):
                        wide = min(box[2], (column + 1) / columns) - max(box[0], column / columns)
                        high = min(box[3], (row + 1) / rows) - max(box[1], row / rows)
                        weights[index] += max(wide, 0) * max(high, 0)
            lost += not weights.any()
            slow.append(weights @ tokens.values / (weights.sum() if weights.any() else 1))
    (vectors,) = found.vectors[_Place("object", "random")]
    torch.testing.assert_close(vectors, torch.stack(slow), atol=1e-5, rtol=1e-4)
    assert int((vectors == 0).all(1).sum()) == lost


def test_soft_tokens_are_those_of_the_words_of_each_object(data: Path) -> None:
    record = next(record for record in read_records(data) if len(record.segments[0].objects) > 1)
    lm, found = VideoLM.from_pretrained("sample:langdc", device="cpu"), _Found([record])
    found.add(record, data.parent, {"langdc": lm})
    video, compressor = lm.open(data.parent / record.video), lm.compressor
    targets = compressor.targets(record)["captions"]
    with torch.no_grad():
        tokens = compressor([video.features], Context(targets={"captions": [targets]})).tokens[0]
        states = compressor.layers(video.features, targets)
        soft = {which: found.vectors[_Place("object", f"langdc, {which}", "soft")][0] for which in SLICES}
        again = found.vectors[_Place("object", "langdc, at its last token", f"layer {compressor.captioner.depth}")][0]
        torch.testing.assert_close(soft["at its last token"], compressor.post_projector(again), atol=1e-5, rtol=1e-5)
        number = 0
        for s, segment in enumerate(record.segments):
            words, place = segment.caption.split(), 0
            for each in segment.objects:
                assert words[place : place + 3] == each.phrase.split()
                own = tokens.values[tokens.segment == s][1:]  # behind the marker
                for which, at in zip(SLICES, (place, place + 2), strict=True):
                    torch.testing.assert_close(soft[which][number], own[at])
                before = found.vectors[_Place("object", "langdc, before the phrase", "layer 3")][0]
                torch.testing.assert_close(before[number], states[3][s][place])
                place, number = place + 4, number + 1


SLICES = ("at its first token", "at its last token")


def test_captions_without_phrases_are_left_out(data: Path, tmp_path: Path, capsys) -> None:
    records = [Record.model_validate(_without_phrases(record)) for record in read_records(data)]
    write_records(data.parent / "plain.jsonl", records)
    command = ["probe", "sample:langdc", "--data", str(data.parent / "plain.jsonl"), "--out", str(tmp_path / "out")]
    assert main(command) == 0
    found = json.loads((tmp_path / "out" / "probe.json").read_text())
    assert [place["group"] for place in found["units"][0]["places"]] == ["encoder"]
    assert "objects in captions need a phrase" in " ".join(capsys.readouterr().out.split())


def _without_phrases(record: Record) -> dict:
    plain = record.model_dump(exclude_defaults=True)
    for segment in plain["segments"]:
        for each in segment.get("objects", ()):
            del each["phrase"]
    return plain


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--videos", "3"), "give 6 or more"),
        (("--keep", "0.5"), "needs compressors"),
        (("--compressors", "pivotkv", "--keep", "0.5"), "works inside the language model"),
        (("--compressors", "selector", "--keep", "0.5"), "weights of its own"),
        (("--compressors", "cdpruner", "--keep", "0.5"), "compresses for a question"),
        (("--compressors", "ma_lmm", "--keep", "0.5", "--frames", "6"), "in 3 segments of"),
    ],
)
def test_what_cannot_be_probed_is_refused(
    data: Path, tmp_path: Path, capsys, words: tuple[str, ...], said: str
) -> None:
    command = ["probe", stock.folder("qwen2_5_vl"), "--data", str(data), "--out", str(tmp_path), "--frames", "8"]
    assert main([*command, *words]) == 2
    assert said in " ".join(capsys.readouterr().err.split()) and not [*tmp_path.iterdir()]


def test_records_without_objects_are_refused(data: Path, tmp_path: Path, capsys) -> None:
    write_records(tmp_path / "bare.jsonl", [Record(id=f"{n}", video="v.mp4") for n in range(8)])
    assert main(["probe", "sample:langdc", "--data", str(tmp_path / "bare.jsonl"), "--out", str(tmp_path / "o")]) == 2
    assert "0 records of 8 have a video and objects" in " ".join(capsys.readouterr().err.split())
