"""What can go wrong with videos, annotations and numbers, as docs/failures.md lists it; the run goes on."""

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from langdc import jsonl
from langdc.data.records import read_records
from langdc.evaluate import tasks
from langdc.evaluate.comparison import read_results
from langdc.evaluate.folder import EvalFolder
from langdc.evaluate.loop import evaluate
from langdc.evaluate.page import page
from langdc.kvcompressors import kvcompressors
from langdc.pipeline import VideoLM
from tests.evaluate.place import DONE, FAILED, MISTAKE, Place

# ---- videos


def _no_frames(path: Path) -> None:
    with av.open(str(path), "w", format="matroska") as file:  # which announces a video track before its first frame
        stream = file.add_stream("libx264", rate=8)
        stream.width = stream.height = 64
        file.start_encoding()


def _only_sound(path: Path) -> None:
    with av.open(str(path), "w") as file:
        stream = file.add_stream("aac", rate=16000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        frame.sample_rate = 16000
        file.mux([*stream.encode(frame), *stream.encode()])


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _garbled(path: Path) -> None:
    content = bytearray(path.read_bytes())
    begin = content.index(b"mdat") + 4
    size = int.from_bytes(content[begin - 8 : begin - 4]) - 8
    content[begin : begin + size] = b"\xff" * size
    path.write_bytes(content)


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (Path.unlink, "there is no such file"),
    "zero-length": (lambda path: path.write_bytes(b""), "the file is empty (0 bytes)"),
    "no frames": (_no_frames, "v1.mp4"),
    "only sound": (_only_sound, "holds no video"),
    "no video at all": (lambda path: path.write_bytes(b"no video" * 99), "cannot be read as a video"),
    "cut in half": (_cut, "cannot be read as a video"),
    "garbled inside": (_garbled, "cannot be read as a video"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_video_that_cannot_be_read(place: Place, kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    whole = place.video("v1").read_bytes()
    breaking, reason = BROKEN[kind]
    breaking(place.video("v1"))
    assert place.run() == FAILED
    _fails(place, "v1", reason)
    failed = sum(line["failed"] for lines in place.answers().values() for line in lines)
    assert f"{failed} answers failed" in capsys.readouterr().err
    row = read_results([place.output])[0]
    assert len(row.failures) == failed / 2 and row.accuracy is not None and row.accuracy.n == len(row.targets)
    before = place.lines()
    place.video("v1").write_bytes(whole)
    assert place.run() == FAILED and place.lines() == before  # nothing is asked again unless that is wanted


def _fails(place: Place, video: str, reason: str) -> None:
    """One video's questions failed in all rows, with nothing for an answer; the others were answered."""
    for name, lines in place.answers().items():
        failed = [line for line in lines if line["failed"]]
        assert {line["video"] for line in lines} >= {"v0", "v2", video}, name
        assert {line["video"] for line in failed} == {video}, name
        assert all(line["score"] == 0 and not line["correct"] and line["answer"] is None for line in failed)
        assert all(reason in line["reason"] for line in failed), failed[0]["reason"]


def test_what_failed_is_asked_again_when_wanted(place: Place, finished: Path, tmp_path: Path) -> None:
    place.video("v1").rename(tmp_path / "elsewhere.mp4")
    assert place.run() == FAILED
    (tmp_path / "elsewhere.mp4").rename(place.video("v1"))
    assert place.run("--retry-failed") == DONE
    undisturbed = place.lines(finished)
    assert place.lines() == {name: undisturbed[name] for name in ("langdc", "random")}
    assert place.run("--retry-failed") == DONE


def test_a_video_outside_fails_until_it_is_allowed(place: Place, tmp_path: Path) -> None:
    video = place.video("v1").rename(tmp_path / "elsewhere.mp4")
    place.video("v1").symlink_to(video)
    assert place.run() == FAILED
    failed = [line for lines in place.answers().values() for line in lines if line["failed"]]
    assert failed and all("v1.mp4 leads outside the folder" in line["reason"] for line in failed)
    assert place.run("--allow-outside", "--retry-failed") == DONE
    assert EvalFolder.read(place.output).header["allow_outside"]


def test_what_was_concluded_from_failures_goes_with_them(place: Place) -> None:
    place.video("v1").unlink()
    assert place.run() == FAILED
    folder = EvalFolder.read(place.output)
    before = place.lines()["random"]
    folder.forget_failures("random")
    gone = [line for line in before if line not in place.lines()["random"]]
    assert {line["key"] for line in gone if line["type"] != "answer"} == {"budget", "finished"}
    assert {line["video"] for line in gone if line["type"] == "answer"} == {"v1"}
    folder.forget_failures("langdc")
    kept = place.lines()
    folder.forget_failures("langdc")
    assert place.lines() == kept


def test_every_video_is_missing(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(place.records.parent / "videos")
    assert place.run("entries.1.match=null", "entries.1.control=null") == FAILED
    assert all(line["failed"] for lines in place.answers().values() for line in lines)
    other = place.output.with_name("matched")
    assert place.run(f"output={other}") == MISTAKE  # there is no count that the second row could copy
    assert "the matched entry has no answered video" in capsys.readouterr().err
    assert "finished" in {line["key"] for line in place.lines(other)["langdc"]}


def test_a_video_that_is_gone_before_it_is_timed(place: Place) -> None:
    assert place.run() == DONE
    rows = [place.output / "results" / entry.name / "0.jsonl" for entry in place.config.entries]
    for path in rows:
        kept = [line for line in jsonl.read(path) if line["type"] not in ("timing", "budget", "finished")]
        path.write_text("".join(f"{json.dumps(line)}\n" for line in kept))
    place.video("v0").unlink()
    assert place.run() == DONE
    for path in rows:
        assert [line["video"] for line in jsonl.read(path) if line["type"] == "timing"] == ["v1"]


def test_the_page_lists_failures(place: Place) -> None:
    place.video("v1").unlink()
    place.run()
    text = page(read_results([place.output]))
    assert "there is no such file" in text[text.index("<h3>Failed</h3>") :]


# ---- annotations


MALFORMED = {
    "no JSON": ('{"id": "v1", "video": ', "line 2: not valid JSON"),
    "no text": (b"\xff\xfe{}", "line 2: not UTF-8"),
    "an unknown field": ({"vidoe": "videos/v1.mp4"}, "line 2: the record has 1 mistake: vidoe: unknown key"),
    "a question without an answer": (
        {"questions": [{"kind": "shape", "question": "what ?"}]},
        "line 2: a question has no answer to compare with; write one",
    ),
    "nested too deeply": ("[" * 100_000, "line 2: "),
    "an id given twice": ({"id": "v0"}, "line 2: the id 'v0' is already on line 1"),
    "no video": ({"video": None}, "line 2: the record has neither video nor image"),
}


def _replace_line_2(place: Place, wrong: object) -> None:
    lines = place.records.read_bytes().splitlines()
    if isinstance(wrong, dict):
        wrong = json.dumps({**json.loads(lines[1]), **wrong})
    lines[1] = wrong if isinstance(wrong, bytes) else str(wrong).encode()
    place.records.write_bytes(b"\n".join(lines) + b"\n")


@pytest.mark.parametrize("kind", MALFORMED)
def test_a_malformed_annotation_line(place: Place, kind: str) -> None:
    wrong, reason = MALFORMED[kind]
    _replace_line_2(place, wrong)
    assert place.run() == FAILED
    _fails(place, "test.jsonl:2", reason)
    for lines in place.answers().values():
        assert [line["kind"] for line in lines if line["failed"]] == ["malformed"]
    row = read_results([place.output])[0]
    assert row.accuracy is not None and row.accuracy.n == len(row.targets)
    assert "malformed" in row.kinds and sum(line["failed"] for line in row.targets) == 1  # it is part of the accuracy


def test_a_large_image_fails_alone(place: Place) -> None:
    record = json.loads(place.records.read_text().splitlines()[1])
    Image.new("1", (15_000, 15_000)).save(place.records.parent / "large.png")
    _replace_line_2(place, json.dumps({**record, "video": None, "image": "large.png", "segments": []}))
    assert place.run() == FAILED
    _fails(place, "v1", "large.png")


def test_malformed_annotations_do_not_train(place: Place) -> None:
    _replace_line_2(place, "{")
    with pytest.raises(ValueError, match="1 bad line"):
        read_records(place.records)


def test_annotations_of_which_no_line_can_be_read(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    place.records.write_text("{\n[]\n")
    assert place.run() == MISTAKE
    assert "test.jsonl has 2 bad line(s)" in capsys.readouterr().err
    assert not place.output.exists()


@pytest.mark.parametrize("override", ["device=nowhere", "task.data=gone.jsonl", "entries.0.backbone={name: pool}"])
def test_a_refused_evaluation_leaves_nothing(place: Place, override: str) -> None:
    before = sorted(place.output.parent.iterdir())
    output = place.output.parent / "new" / "folder"
    assert place.run(f"output={output}", override) == MISTAKE
    assert sorted(place.output.parent.iterdir()) == before


# ---- numbers that are none


class Poisoned(VideoLM):
    """A model whose encoders (`where` is "encode") or whose compressor ("compress") give NaN for the video v1."""

    where = ""

    def open(self, path, *args, same=None, **options):
        if same is None and Path(path).stem == "v1" and self.where == "encode":
            with _nan_after(self.model.backbone, "encode"):
                return super().open(path, *args, same=same, **options)
        video = super().open(path, *args, same=same, **options)
        video.__dict__["poisoned"] = Path(path).stem == "v1"
        return video

    def compress(self, batch):
        found = super().compress(batch)
        if self.where != "compress":
            return found
        return [
            replace(one, tokens=replace(one.tokens, values=one.tokens.values * float("nan")))
            if video.__dict__["poisoned"]
            else one
            for (video, _), one in zip(batch, found, strict=True)
        ]


@contextmanager
def _nan_after(owner: Any, name: str) -> Iterator[None]:
    real = getattr(owner, name)

    def encode(*args):
        return [{key: replace(grid, values=_spoilt(grid.values)) for key, grid in of.items()} for of in real(*args)]

    setattr(owner, name, encode)
    try:
        yield
    finally:
        delattr(owner, name)


def _spoilt(values: Tensor) -> Tensor:
    values = values.clone()
    values[0, 0, 0, 0] = float("nan")
    return values


@pytest.mark.parametrize(
    ("where", "reason"),
    [("encode", "gives NaN or infinity for this video"), ("compress", "the video tokens hold NaN or infinity already")],
)
def test_nan_for_one_video(place: Place, where: str, reason: str) -> None:
    class Lm(Poisoned):
        pass

    Lm.where = where
    task = tasks.build(place.config.task.name, **place.config.task.settings)
    config = place.config.model_copy(update={"batch_size": 3, "entries": place.config.entries[:1]})
    evaluate(config, task, load=lambda row: Lm.from_pretrained(row.model))
    _fails(place, "v1", reason)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_language_model_whose_scores_are_no_numbers(prepared: Path, value: float) -> None:
    lm = VideoLM.from_pretrained(prepared / "pool")
    video = lm.open(prepared / "data" / "videos" / "v0.mp4")
    weight: Any = lm.model.backbone.lm_head.weight
    with torch.no_grad():  # of both signs, so that one of them is the largest score whatever it is multiplied with
        weight[7:9, 0] = torch.tensor([value, -value])
    with pytest.raises(ValueError, match="scores of the next token are NaN or infinite: the video tokens are finite"):
        lm.answer([(video, "what ?"), (video, "which ?")], max_new_tokens=2)
    lm.kv = kvcompressors.build("snapkv", keep=0.5)
    with pytest.raises(ValueError, match="scores of the next token are NaN"):
        video.ask("what ?", max_new_tokens=2)


def test_forbidden_tokens_are_no_failure(prepared: Path) -> None:
    lm = VideoLM.from_pretrained(prepared / "pool")
    video = lm.open(prepared / "data" / "videos" / "v0.mp4")
    words, allowed = lm.model.backbone.tokenizer, 20
    forbidden = [word for word in range(len(words)) if word != allowed]
    answer = video.ask("what ?", max_new_tokens=2, suppress_tokens=forbidden)
    assert answer.text == str(words.decode([allowed, allowed])).strip()
    with pytest.raises(ValueError, match="scores of the next token"):
        video.ask("what ?", max_new_tokens=2, suppress_tokens=[*forbidden, allowed])
