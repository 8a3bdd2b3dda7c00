"""Training sets in the published layouts, small and of our own making: read, counted, written."""

import json
import os
from collections.abc import Iterable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest

from data_prep.langdc_mix import main
from langdc.data.records import Record, SegmentRecord, check_media, read_records, write_records
from langdc.prepare.mix import MIXES, SOURCES


def turns(*values: str) -> list[dict]:
    """A conversation as the published files have it."""
    return [{"from": ("human", "gpt")[number % 2], "value": value} for number, value in enumerate(values)]


def sample(media: str, *values: str, kind: str = "video") -> dict:
    return {"id": media, kind: media, "conversations": turns(*(values or ("<video>\nwhat is it ?", "a ring")))}


def put(root: Path, name: str, items: list, there: Iterable[str] = ()) -> None:
    """Write a set's annotations, and an empty file for each of its media that is there."""
    file = root / SOURCES[name].annotations
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(items))
    for media in there:
        path = root / SOURCES[name].media / media
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The multiple-choice mix: each set has one sample and its video."""
    for name in MIXES["choice"]:
        put(tmp_path / "sets", name, [sample(f"{name}/a.mp4")], [f"{name}/a.mp4"])
    return tmp_path / "sets"


def test_a_whole_mix_becomes_records_that_training_reads(root: Path, tmp_path: Path, capsys) -> None:
    many = sample("b.mp4", "who ?\n<video>", "a cat", "where ?", "here")
    two = {**sample("", "<video>\n<video>\nsame ?", "no"), "video": ["b.mp4", "c.mp4"]}
    led = {"video": "b.mp4", "conversations": turns("", "a reply", "<video>\nwhy ?", "so")[1:]}
    put(root, "next_qa", [many, two, led], ["b.mp4", "c.mp4"])
    out = tmp_path / "data" / "choice.jsonl"
    assert main(["choice", "--root", str(root), "--out", str(out)]) == 0
    records = check_media(out, read_records(out), allow_outside=True)
    assert len(records) == 9
    by_id = {record.id: record for record in records}
    assert [(m.role, m.content) for m in by_id["next_qa/0"].messages] == [
        ("user", "<video>\nwho ?"),
        ("assistant", "a cat"),
        ("user", "where ?"),
        ("assistant", "here"),
    ]
    assert [Path(str(medium.video)).name for medium in by_id["next_qa/1"].media] == ["b.mp4", "c.mp4"]
    assert by_id["next_qa/1"].questions[0].question == "<video>\n<video>\nsame ?"
    asked = by_id["k710/0"].questions[0]
    assert (asked.kind, asked.question, asked.answer) == ("k710", "what is it ?", "a ring")
    assert by_id["next_qa/2"].questions[0].question == "why ?"
    printed = capsys.readouterr().out
    assert "train.targets=none" in printed and "CC BY-NC-SA 4.0" in printed
    assert "next_qa: 1 samples begin with a reply" in printed


def test_missing_and_malformed_samples_are_named_and_left_out(root: Path, tmp_path: Path, capsys) -> None:
    items = [
        sample("a.mp4"),
        sample("gone.mp4"),
        sample("a.mp4", "one ?", "two", "three ?"),
        {"video": "a.mp4"},
        "text",
        sample("a.mp4", "why ?", " "),
        {"video": "a.mp4", "conversations": []},
        sample("a.mp4", "<video>", "nothing was asked"),
        sample("a.mp4", "<video>\nwho ?", "a cat", "where ?\n<video>", "here"),
        {"video": None, "conversations": turns("who ?", "a cat")},
        {"video": 7, "conversations": turns("who ?", "a cat")},
        {"video": "a.mp4", "conversations": [{"from": "human", "value": None}]},
        sample("a" * 300, "who ?", "a cat"),
    ]
    put(root, "ssv2", items, ["a.mp4"])
    out = tmp_path / "choice.jsonl"
    assert main(["choice", "--root", str(root), "--out", str(out)]) == 1
    printed = capsys.readouterr().out
    assert "ssv2: 2 files are missing" in printed and "gone.mp4" in printed
    assert "ssv2: 10 samples are malformed" in printed and "and 5 more" in printed
    for reason in (
        "sample 2: its record has 1 mistake: the turns are user, assistant, user;",
        "sample 3: it has no video or image, or no conversations",
        "sample 4: it is a str",
        "sample 5: a reply of the assistant is blank",
    ):
        assert reason in printed
    assert [record.id for record in read_records(out) if record.id.startswith("ssv2")] == ["ssv2/0"]


def test_an_absent_set_stops_the_writing_unless_it_is_left_out(root: Path, tmp_path: Path, capsys) -> None:
    (root / SOURCES["webvid_qa"].annotations).unlink()
    out = tmp_path / "choice.jsonl"
    command = ["choice", "--root", str(root)]
    assert main(command) == 1
    assert "webvid_qa: there is no" in capsys.readouterr().out
    assert main([*command, "--out", str(out)]) == 2
    assert "Nothing is written without webvid_qa" in capsys.readouterr().err and not out.exists()
    assert main([*command, "--without", "webvid_qa", "--out", str(out)]) == 0
    assert len(read_records(out)) == 6


def test_a_byte_order_mark_is_no_damage(root: Path) -> None:
    file = root / SOURCES["k710"].annotations
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    assert main(["choice", "--root", str(root)]) == 0


@pytest.mark.parametrize(("text", "says"), [('[{"vid', "is not valid JSON"), ('{"a": 1}', "holds a dict")])
def test_a_broken_file_is_named(root: Path, capsys, text: str, says: str) -> None:
    (root / SOURCES["k710"].annotations).write_text(text)
    assert main(["choice", "--root", str(root)]) == 2
    assert says in capsys.readouterr().err


def captions(root: Path, file: Path, names: Iterable[str]) -> Path:
    """Segments' captions of the videos of sets, as records beside something else than the sets."""
    videos = [root / SOURCES[name].media / name / "a.mp4" for name in names]
    segments = [SegmentRecord(caption=text) for text in ("a ring", "")]
    named = [(str(n), Path(os.path.relpath(video, file.parent)).as_posix()) for n, video in enumerate(videos)]
    write_records(file, [Record(id=number, video=video, segments=segments) for number, video in named])
    return file


def test_captions_of_segments_join_their_videos(root: Path, tmp_path: Path, capsys) -> None:
    put(root, "videochat", [sample("c.mp4")], ["c.mp4"])
    put(root, "ssv2", [sample("ssv2/a.mp4"), sample("ssv2/a.mp4")])
    said = captions(root, tmp_path / "captions" / "said.jsonl", ["k710", "ssv2"])
    out = tmp_path / "out" / "stage2b.jsonl"
    command = ["stage2b", "--root", str(root), "--out", str(out)]
    assert main(command) == 2
    assert "--captions FILE" in capsys.readouterr().err
    assert main([*command, "--captions", str(said)]) == 0
    records = check_media(out, read_records(out), allow_outside=True)
    assert [len(record.segments) for record in records] == [2, 2]  # every video once, those without captions not at all
    assert not any(record.questions for record in records)
    assert "videochat: 1 samples have no captions" in capsys.readouterr().out
    choice = tmp_path / "choice.jsonl"
    assert main(["choice", "--root", str(root), "--captions", str(said), "--out", str(choice)]) == 0
    assert sum(len(record.segments) == 2 for record in read_records(choice)) == 3


def test_image_captions_serve_both_the_language_model_and_the_captioner(tmp_path: Path) -> None:
    items = [sample("GCC_1.jpg", "Say it briefly.\n<image>", "a red door", kind="image")]
    put(tmp_path, "cc595k", items, ["GCC_1.jpg"])
    out = tmp_path / "stage1.jsonl"
    assert main(["stage1", "--root", str(tmp_path), "--out", str(out)]) == 0
    (record,) = check_media(out, read_records(out), allow_outside=True)
    assert record.image == "pretraining/CC3M-595K/GCC_1.jpg"
    assert [segment.caption for segment in record.segments] == ["a red door"]
    assert (record.questions[0].question, record.questions[0].answer) == ("Say it briefly.", "a red door")


def test_images_in_parquet_files_are_unpacked(tmp_path: Path) -> None:
    rows = [
        {"id": name, "conversations": turns("<image>", text), "image": {"bytes": name.encode(), "path": path}}
        for name, text, path in (("1", "a long caption", "1.png"), ("2", "another", None))
    ]
    folder = tmp_path / SOURCES["recap558k"].annotations
    folder.mkdir(parents=True)
    parquet.write_table(pa.Table.from_pylist(rows), folder / "train-00000.parquet")
    assert main(["stage2a", "--root", str(tmp_path)]) == 0
    assert not (tmp_path / "recap558k").exists()
    out = tmp_path / "out" / "stage2a.jsonl"
    assert main(["stage2a", "--root", str(tmp_path), "--out", str(out)]) == 0
    records = check_media(out, read_records(out), allow_outside=True)
    assert [Path(str(record.image)).suffix for record in records] == [".png", ".jpg"]
    assert [(out.parent / str(record.image)).read_bytes() for record in records] == [b"1", b"2"]
    assert {Path(str(record.image)).parent.as_posix() for record in records} == {"recap558k"}
    assert [record.segments[0].caption for record in records] == ["a long caption", "another"]
    assert records[0].questions[0].question == "Describe the image."


def test_what_there_is_is_listed_and_the_root_is_asked_for(capsys) -> None:
    assert main([]) == 0
    assert "annotations/vcg-plus_112K.json" in capsys.readouterr().out
    assert main(["open"]) == 2
    assert "--root DIR" in capsys.readouterr().err
