"""Data sets are read from files, archives, folders and by `datasets`; damage is named, a kill leaves nothing half."""

import csv
import io
import json
import multiprocessing
import os
import tarfile
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet
import pytest

from data_prep.import_data import main
from langdc.data.records import check_media, read_records
from langdc.prepare.rows import subtitles
from tests.data_prep.imports import asked_of, imported, llava, picture, put


def tar(file: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(file, "w") as opened:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            opened.addfile(info, io.BytesIO(content))
    return file


def test_lines_with_a_mark_of_byte_order_a_cut_and_bytes_that_are_no_text(folder: Path, capsys) -> None:
    good = json.dumps({"video": "a.mp4", "caption": "x"}).encode()
    for name in ("rows.jsonl", "rows.json"):
        (folder / name).write_bytes(
            b"\xef\xbb\xbf" + good + b"\n\n" + good[:-4] + b"\n" + b'{"caption": "\xe9"}\n' + good
        )
        assert len(imported(folder / name, code=1)) == 2
        printed = capsys.readouterr().out
        assert "line 3: not valid JSON" in printed and "line 4: not UTF-8 text" in printed
    assert "rows.json (JSON lines): captions, 4 rows" in printed


def test_json_in_a_list_or_under_data(folder: Path, capsys) -> None:
    row = {"video": "a.mp4", "caption": "x"}
    (folder / "bom.json").write_bytes(b"\xef\xbb\xbf" + json.dumps({"data": [row], "version": 1}).encode())
    assert len(imported(folder / "bom.json")) == 1
    for content, reason in (
        (b'[\n{"a": 1},\n{"b": ', "line 3"),
        (b'[\n"\xe9"]', "line 2, is not UTF-8"),
        (b'{"a": 1}', "holds a dict"),
        (b"[" * 100_000, "nested too deeply"),
    ):
        (folder / "broken.json").write_bytes(content)
        assert main([str(folder / "broken.json"), "--out", str(folder / "o.jsonl")]) == 2
        assert reason in capsys.readouterr().err
        assert not (folder / "o.jsonl").exists()


@pytest.mark.parametrize(("name", "delimiter"), [("t.csv", ","), ("t.csv", ";"), ("t.tsv", "\t")])
def test_tables(folder: Path, capsys, name: str, delimiter: str) -> None:
    file = folder / name
    with file.open("w", encoding="utf-8-sig", newline="") as opened:
        table = csv.writer(opened, delimiter=delimiter)
        table.writerow(["video", "question", "a0", "a1", "answer", "start"])
        table.writerow(["a", f'which{delimiter} "this"\nor that ?', "é", "no", "0", ""])
        table.writerow(["b.mp4", "open ?", "", "", "yes", "1.5"])
        table.writerow(["b.mp4", "short ?"])
    with file.open("ab") as opened:
        opened.write(delimiter.join(["b.mp4", "\xe9 ?", "", "", "yes", "1.5"]).encode("latin-1"))
    first, second = imported(file, code=1)
    assert (first.video, asked_of(first)[1:]) == ("../a.mp4", (f'which{delimiter} "this"\nor that ?', "A", ["é", "no"]))
    assert (second.start, asked_of(second)[1:]) == (1.5, ("open ?", "yes", []))
    printed = capsys.readouterr().out
    assert "line 5: it has another number of cells" in printed and "line 6: not UTF-8 text" in printed


def test_a_quote_that_never_ends_is_named(folder: Path, capsys) -> None:
    (folder / "t.csv").write_text('video,caption\na.mp4,"a cat\nb.mp4,a dog\n')
    assert main([str(folder / "t.csv"), "--out", str(folder / "o.jsonl")]) == 2
    assert "t.csv, line 3: unexpected end of data" in capsys.readouterr().err


def test_parquet_files_and_folders_of_them(folder: Path, capsys) -> None:
    shards = folder / "shards"
    shards.mkdir()
    for number in range(2):
        rows = [
            {"question": "q", "answer": "a", "caption": None, "image": {"bytes": picture(), "path": "x.png"}},
            {"question": None, "answer": None, "caption": f"c{number}", "image": {"bytes": picture(), "path": None}},
        ]
        pa.parquet.write_table(pa.Table.from_pylist(rows), shards / f"train-{number}.parquet")
    records = imported(shards)
    assert [record.questions[0].answer for record in records] == ["a", "c0", "a", "c1"]
    assert "shards (2 Parquet files): questions (2), captions (2), 4 rows" in capsys.readouterr().out
    assert len(list((folder / "out/mine_media").iterdir())) == 2  # one content, two names
    file = shards / "train-1.parquet"
    file.write_bytes(file.read_bytes()[:-9])
    assert main([str(shards), "--out", str(folder / "o.jsonl")]) == 2
    assert "train-1.parquet is no whole Parquet file" in capsys.readouterr().err


def test_tars_of_webdataset(folder: Path, capsys) -> None:
    shards = folder / "shards"
    shards.mkdir()
    talk = json.dumps(llava("<image>\nwho ?", "a cat", video="whatever.mp4")).encode()
    tar(shards / "0.tar", {"d.x/1.mp4": b"video", "d.x/1.json": talk, "d.x/2.0.jpg": picture(), "d.x/2.txt": b"red\n"})
    tar(shards / "1.tar", {"2.mp4": b"other", "2.srt": b"1\n00:00:01,000 --> 00:00:02,000\nhello\n", "2.txt": b"x"})
    tar(shards / "2.tar", {"3.mp4": b"", "3.txt": b"x", "4.json": b"{", "5.mp4": b"v", "5.cls": b"7", "5.txt": b"x"})
    records = imported(shards, code=1)
    assert [record.id for record in records] == ["d.x/1", "d.x/2", "2", "5"]
    assert [(folder / "out" / str(record.file)).read_bytes() for record in records] == [
        b"video",
        picture(),
        b"other",
        b"v",
    ]
    assert records[0].questions[0].question == "<video>\nwho ?" and records[1].segments[0].caption == "red"
    assert records[2].questions[0].context == "hello"
    printed = capsys.readouterr().out
    assert "shards (3 tars): LLaVA conversations (1), captions (3), 6 rows" in printed
    assert "2.tar, 3: video: the file is empty" in printed and "2.tar, 4: not valid JSON" in printed
    assert "Not used: cls (1)" in printed


@pytest.mark.parametrize("kept", [100, 700, 1024, 2048])
def test_a_tar_that_is_cut_is_refused(folder: Path, capsys, kept: int) -> None:
    whole = tar(folder / "x.tar", {"1.mp4": b"v" * 300, "1.txt": b"x"}).read_bytes()
    (folder / "x.tar").write_bytes(whole[:kept])
    assert main([str(folder / "x.tar"), "--out", str(folder / "o.jsonl")]) == 2
    assert "x.tar is no whole tar" in capsys.readouterr().err and not (folder / "o.jsonl").exists()


def test_a_folder_of_videos_with_texts_beside_them(folder: Path, capsys) -> None:
    (folder / "a.txt").write_bytes("\ufeffa cat\n".encode())
    (folder / "sub/e.srt").write_text("1\n00:00:01,000 --> 00:00:02,000\nhello\n")
    (folder / "b.txt").write_bytes(b"caf\xe9")
    (folder / "notes.txt").write_text("not of a video")
    records = {record.id: record for record in imported(folder, "--media", str(folder), code=1)}
    assert set(records) == {"a", "c d", "sub/e"}
    assert asked_of(records["a"]) == ("set", "Describe the video.", "a cat", [])
    (asked,) = records["sub/e"].questions
    assert (asked.context, asked.answer) == ("hello", "")
    assert not records["c d"].questions
    printed = capsys.readouterr().out
    assert "set (4 videos): captions (2), media without text (1), 5 rows" in printed
    assert "b.mp4: its .txt is not UTF-8" in printed and "notes.txt: no video has this name" in printed


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "1\n00:00:01,000 --> 00:00:02,000\n<i>hi</i>\nthere\n\n2\n00:00:03,000 --> 00:00:04,000\nbye\n",
            "hi\nthere\nbye",
        ),
        (
            "1\n00:00:01,000 --> 00:00:02,000\nhi\n2\n00:00:03,000 --> 00:00:04,000\n42\n3\n0:00:05.0 --> 0:00:06.0\nx",
            "hi\n42\nx",
        ),
        ("00:00:01,000 --> 00:00:02,000\n7\n00:00:03,000 --> 00:00:04,000\n{\\an8}bye", "7\nbye"),
        ("", ""),
    ],
)
def test_subtitles_without_numbers_and_times(text: str, said: str) -> None:
    assert subtitles(text) == said
    assert subtitles(text.replace("\n", "\r\n")) == said


def test_text_that_is_no_subtitles() -> None:
    with pytest.raises(ValueError, match=r"no line like 00:00:01,240"):
        subtitles("hello\nthere")


def saved(folder: Path) -> datasets.Dataset:
    (folder / "red.png").write_bytes(picture())
    rows = {
        "question": ["what ?", "who ?"],
        "answer": ["red", "a cat"],
        "image": [str(folder / "red.png"), None],
        "images": [[], [str(folder / "red.png")] * 2],
    }
    kinds = {"question": datasets.Value("string"), "answer": datasets.Value("string"), "image": datasets.Image()}
    return datasets.Dataset.from_dict(rows, datasets.Features({**kinds, "images": datasets.List(datasets.Image())}))


def test_a_folder_that_datasets_saved_is_not_decoded(folder: Path, monkeypatch, capsys) -> None:
    both = datasets.DatasetDict({"train": saved(folder), "test": saved(folder).select([1])})
    both.save_to_disk(str(folder / "hf"))

    def decode(*_: object, **__: object) -> None:
        raise AssertionError("an image was decoded")

    monkeypatch.setattr(datasets.Image, "decode_example", decode)
    assert main([str(folder / "hf"), "--out", str(folder / "o.jsonl")]) == 2
    assert "has train, test. Name one of them." in capsys.readouterr().err
    first, second = imported(folder / "hf", "--split", "train")
    assert (folder / "out" / str(first.image)).read_bytes() == picture() and len(second.media) == 2
    assert len(imported(folder / "hf", "--split", "test")) == 1


def test_a_hub_name_is_loaded_by_datasets(folder: Path, monkeypatch, capsys) -> None:
    calls = []

    def load(path: str, name: str | None = None, *, split: str | None = None) -> Any:
        calls.append((path, name, split))
        found = datasets.DatasetDict({"train": saved(folder)})
        return found if split is None else found[split]

    monkeypatch.setattr(datasets, "load_dataset", load)
    monkeypatch.chdir(folder)
    assert main(["owner/name:small", "--split", "train", "--out", "o.jsonl"]) == 0
    assert main(["owner/name", "--out", "o.jsonl"]) == 0
    assert calls == [("owner/name", "small", "train"), ("owner/name", None, None)]
    assert len(check_media(folder / "o.jsonl", read_records(folder / "o.jsonl"), allow_outside=True)) == 2
    assert "name (datasets): questions, 2 rows" in capsys.readouterr().out

    def fail(*_: object, **__: object) -> None:
        raise ConnectionError("no network\nand more")

    monkeypatch.setattr(datasets, "load_dataset", fail)
    assert main(["owner/name", "--out", "o.jsonl"]) == 2
    assert "owner/name was not loaded (no network)" in capsys.readouterr().err


def test_what_is_no_source_is_said(folder: Path, capsys) -> None:
    (folder / "x.yaml").touch()
    (folder / "empty").mkdir()
    for source, reason in (
        ("x.yaml", "is in no known format"),
        ("empty", "is in no known format"),
        ("gone.json", "is not there"),
        ("sub/gone", "is not there"),
    ):
        assert main([str(folder / source), "--out", str(folder / "o.jsonl")]) == 2
        printed = capsys.readouterr().err
        assert reason in printed and "owner/name" in printed
    file = put(folder, [])
    assert main([str(file), "--out", str(folder / "o.jsonl"), "--split", "train"]) == 2
    assert main([str(file), "--out", str(folder / "o.jsonl")]) == 2
    assert "No row of" in capsys.readouterr().err
    assert main([str(file), "--out", str(file)]) == 2
    assert "is the source" in capsys.readouterr().err


@pytest.mark.parametrize("unpacked", [1, 20, 150])
def test_a_killed_import_leaves_nothing_and_the_same_command_gives_the_same_file(folder: Path, unpacked: int) -> None:
    source = tar(folder / "x.tar", {f"{number}.mp4": os.urandom(2000) for number in range(200)})
    whole, killed = folder / "whole", folder / "killed"
    assert main([str(source), "--out", str(whole / "o.jsonl")]) == 0
    process = multiprocessing.get_context("fork").Process(
        target=main, args=([str(source), "--out", str(killed / "o.jsonl")],)
    )
    process.start()
    while len(list((killed / "o_media").glob("*.mp4"))) < unpacked:
        assert process.is_alive()
    process.kill()
    process.join()
    assert not (killed / "o.jsonl").exists()
    assert main([str(source), "--out", str(killed / "o.jsonl")]) == 0
    assert (killed / "o.jsonl").read_bytes() == (whole / "o.jsonl").read_bytes()
    media = [{file.name: file.read_bytes() for file in (side / "o_media").iterdir()} for side in (whole, killed)]
    assert media[0] == media[1] and len(media[0]) == 200


def test_words_for_nothing_are_text_in_a_table_and_an_empty_cell_is_named(folder: Path, capsys) -> None:
    words = ["None", "nan", "NA", "null", "N/A", "NaN"]
    rows = "".join(f"a.mp4,how many ?,{word},,\n" for word in [*words, ""])
    (folder / "t.csv").write_text(f"video,question,answer,start,end\n{rows}")
    records = imported(folder / "t.csv")
    assert [record.questions[0].answer for record in records] == [*words, ""]
    assert (
        "1 of 7 questions has no answer. A training that learns it refuses it; the first is line 8."
        in capsys.readouterr().out
    )
