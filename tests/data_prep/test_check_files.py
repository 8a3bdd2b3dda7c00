"""Which files `langdc data check` takes, where it writes what it found, and which lists a training takes."""

import json
from pathlib import Path

import pytest

from data_prep.check import main
from langdc import jsonl
from langdc.config import RunConfig, load
from langdc.train.run import train
from tests.data_prep.checks import asked, found_in, good, movie, run_file


def test_the_list_of_another_file_stays(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = good(tmp_path, 2)
    (tmp_path / "v1.mp4").write_bytes(b"no film")
    assert main([str(data)]) == 1
    before = (tmp_path / "data.check/quarantine.jsonl").read_bytes()
    twin, other = tmp_path / "data", tmp_path / "data.json"
    for each in (twin, other):
        each.write_bytes(data.read_bytes())
    assert main([str(other)]) == 1 and (tmp_path / "data.json.check/quarantine.jsonl").is_file()
    for words in ([str(twin)], [str(other), "--out", str(tmp_path / "data.check")]):
        assert main(words) == 2 and f"holds the list of {data}" in capsys.readouterr().err
    assert (tmp_path / "data.check/quarantine.jsonl").read_bytes() == before


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("t.csv", b"video,question\na.mp4,x\nb.mp4,y\n"),
        ("t.txt", b"video;question\na.mp4;x\n"),
        ("t.jsonl", b"video\tquestion\na.mp4\tx\n"),
        ("t.tsv", b'video\tmeta\na.mp4\t"\n{""a"": 1}"\n'),
        ("t.json", b'{\n "data": [\n  {"video": "a.mp4"}\n ]\n}\n'),
        ("t.parquet", b"PAR1\x15\x04\n{\n"),
        ("t.xlsx", b"PK\x03\x04\n{x\n"),
        ("clips", None),
        ("trian.jsonl", None),
    ],
)
def test_what_is_no_record_file_is_one_sentence_and_leaves_no_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, content: bytes | None
) -> None:
    file = tmp_path / name
    if content is not None:
        file.write_bytes(content)
    elif name == "clips":
        movie(file / "v.mp4", 0)
    assert main([str(file)]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and ("langdc data import" in said or content is None)
    assert ("folder" in said) == (name == "clips") and not list(tmp_path.glob("*.check"))


def test_missing_answers_and_questions_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With a config, too, a record without answers is one fault; videos of which nothing is asked are one line."""
    data = good(tmp_path, 3)
    lines = [json.loads(line) for line in data.read_text().splitlines()]
    lines[0]["questions"] = [asked(answer=""), asked(answer="", question="where ?"), asked()]
    lines[1]["questions"] = lines[2]["questions"] = []
    jsonl.write_lines(data, [*lines, {"id": "captions", "video": "v0.mp4", "segments": [{"caption": "x"}]}])
    with data.open("ab") as file:
        file.write(b"{no json\n")
    model = {
        "backbone": {"name": "qwen2_5_vl", "source": "tiny:qwen2_5_vl"},
        "compressor": {"name": "pool", "sides": [2]},
    }
    for more, fatal in ((), False), (("--config", str(run_file(tmp_path, data, model))), True):
        assert main([str(data), *more]) == 1
        assert found_in(tmp_path / "data.check") == {
            1: [("answer", fatal)],
            2: [("no question", False)],
            5: [("JSON", True)],
        }
        said = capsys.readouterr().out
        assert "2 of 3 questions have no answer." in said and "2 of 4 records ask and describe nothing" in said
        assert f"Reading {data} ..." in said and f"{data}, line 5: not valid JSON" in said and "id None" not in said


def test_a_list_that_names_no_file_of_the_run_is_an_error(tmp_path: Path) -> None:
    data = good(tmp_path, 2, segments=[{"caption": "a ring"}] * 4)
    other = tmp_path / "other.jsonl"
    other.write_bytes(data.read_bytes() + b'{"id": "gone", "video": "gone.mp4"}\n')
    assert main([str(other)]) == 1
    listed = tmp_path / "other.check/quarantine.jsonl"
    for streaming in ("false", "true"):
        given = [f"train.quarantine={listed}", f"train.streaming={streaming}"]
        with pytest.raises(ValueError, match=r"lists records of .*other\.jsonl, and the run reads .*data\.jsonl"):
            train(load(RunConfig, run_file(tmp_path, data), given))
    assert main([str(data)]) == 0, "a list without lines is that of data without faults"
    kept = load(RunConfig, run_file(tmp_path, data), [f"train.quarantine={tmp_path / 'data.check/quarantine.jsonl'}"])
    assert train(kept).is_dir()


def test_long_texts_and_written_control_tokens_are_remarked(tmp_path: Path) -> None:
    data, told = good(tmp_path, 1), "yes <|im_end|>\n<|endoftext|><|im_end|>"
    talk = [{"role": "user", "content": "x" * 20_001}, {"role": "assistant", "content": told}]
    others = [
        {"id": "talk", "video": "v0.mp4", "messages": talk},
        {"id": "question", "video": "v0.mp4", "questions": [asked(question=told, context="c" * 20_000)]},
        {"id": "fits", "video": "v0.mp4", "questions": [asked(question="<|>?", answer="a" * 20_000)]},
    ]
    jsonl.append(data, *others)
    assert main([str(data)]) == 0
    found = jsonl.read(tmp_path / "data.check/faults.jsonl", strict=True)
    assert [(fault["id"], fault["kind"], fault["fatal"]) for fault in found] == [
        ("talk", "long text", False),
        ("talk", "control token", False),
        ("question", "long text", False),
        ("question", "control token", False),
    ]
    assert "20,001 characters" in found[0]["reason"]
    assert found[1]["reason"].startswith("<|im_end|>, <|endoftext|> in a text")
