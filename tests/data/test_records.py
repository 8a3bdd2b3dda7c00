"""Records are read strictly: every bad line is named, with its number and the reason."""

import json
from pathlib import Path

import pytest

from langdc.data.records import QuestionRecord, Record, SegmentRecord, check_media, read_records, write_records

GOOD = {
    "id": "v",
    "video": "videos/v.mp4",
    "start": 0,
    "end": 1.5,
    "segments": [{"caption": "red square left", "density": 1, "subjects": ["square"]}, {"caption": ""}],
    "questions": [{"kind": "shape", "question": "what shape is the red object ?", "answer": "square"}],
}


def _file(folder: Path, *lines: object) -> Path:
    path = folder / "data.jsonl"
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return path


def _good(number: int) -> dict:
    return {**GOOD, "id": f"v{number}"}


def test_a_record_is_read_with_all_it_holds(tmp_path: Path) -> None:
    (record,) = read_records(_file(tmp_path, GOOD))
    assert (record.id, record.start, record.end, record.image, record.line) == ("v", 0.0, 1.5, None, 1)
    assert record.media_path(tmp_path) == tmp_path / "videos" / "v.mp4"
    assert record.segments[0] == SegmentRecord(caption="red square left", density=1, subjects=["square"])
    assert record.segments[1].density is None
    assert record.questions[0].answer == "square"


def test_written_records_come_back(tmp_path: Path) -> None:
    records = [
        Record(id="a", video="a.mp4", start=0.5, segments=[SegmentRecord(caption="", density=0)]),
        Record(id="ü", image="b.png"),
        Record.model_validate(
            {
                "id": "talk",
                "media": [{"video": "a.mp4", "end": 2.5}, {"image": "b.png"}],
                "messages": [
                    {"role": "user", "content": "<video><image>same ?"},
                    {"role": "assistant", "content": "no"},
                ],
            }
        ),
        Record(id="text", questions=[QuestionRecord(kind="k", question="why ?", answer="so")]),
    ]
    path = tmp_path / "new" / "data.jsonl"
    write_records(path, records)
    back = read_records(path)
    assert [r.model_dump() for r in back] == [r.model_dump() for r in records]
    assert [p.name for p in path.parent.iterdir()] == ["data.jsonl"]
    assert back[2].media_path(tmp_path) is None and [medium.file for medium in back[2].shown] == ["a.mp4", "b.png"]
    assert back[3].media_path(tmp_path) is None and not back[3].shown
    assert all(line.startswith('{"id": ') for line in path.read_text().splitlines())


def test_a_single_medium_stands_in_the_record(tmp_path: Path) -> None:
    (record,) = read_records(_file(tmp_path, {"id": "v", "media": [{"video": "a.mp4", "start": 1.5}]}))
    assert record.model_dump() == Record(id="v", video="a.mp4", start=1.5).model_dump()


def test_an_interrupted_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    write_records(path, [Record(id="old")])

    def broken():
        yield Record(id="new")
        raise RuntimeError

    with pytest.raises(RuntimeError):
        write_records(path, broken())
    assert [record.id for record in read_records(path)] == ["old"]


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        ('{"id": "x", "video": ', "not valid JSON"),
        ("[1, 2]", "holds a list"),
        ({"id": "x", "vidoe": "a.mp4"}, "vidoe: unknown key. Did you mean 'video'?"),
        ({"id": "x", "segments": [{"captoin": "a"}]}, "segments.0.captoin: unknown key. Did you mean 'caption'?"),
        ({"id": "x", "segments": [{"density": 1}]}, "segments.0.caption: Field required"),
        ({"video": "a.mp4"}, "id: Field required"),
        ({"id": 7}, "valid string"),
        (
            {"id": "x", "segments": [{"caption": "a", "density": "2"}]},
            "segments.0.density: Input should be a valid integer",
        ),
        ({"id": "x", "segments": [{"caption": "a", "density": -1}]}, "greater than or equal to 0"),
        ({"id": "x", "video": "a.mp4", "image": "a.png"}, "not both"),
        (
            {"id": "x", "image": "a.mp4"},
            "image names 'a.mp4', which is called like no image (.bmp, .jpeg",
        ),
        ({"id": "x", "video": "a.PNG"}, "video names 'a.PNG', which is called like an image; give it as image"),
        ({"id": "x", "media": [{"video": "a.mp4"}, {"image": "b.gif"}]}, "media.1: image names 'b.gif'"),
        ({"id": "x", "video": "a.mp4", "start": 2.0, "end": 1.0}, "must come before end"),
        ('{"id": "x", "video": "a.mp4", "start": NaN}', "start:"),
        ({"id": "x", "image": "a.png", "end": 1.0}, "end: only a video has these"),
        ({"id": "x", "questions": [{"kind": "k", "answer": "a"}]}, "questions.0.question: Field required"),
        ({"id": "v3"}, "'v3' is already on line 3"),
        ({"id": "x", "questions": [{"kind": "k", "question": " "}]}, "the question is blank"),
        ({"id": "x", "questions": [{"kind": "k", "question": "q", "answer": "\t"}]}, "the answer is blank"),
        (
            {"id": "x", "questions": [{"kind": "k", "question": "q", "answer": "AB", "options": ["a", "b", "c"]}]},
            "'AB' is none of the 3 options",
        ),
        (
            {"id": "x", "questions": [{"kind": "k", "question": "q", "answer": "A", "options": ["a"]}]},
            "one option is no choice; give two or more, or none",
        ),
        (
            {"id": "x", "questions": [{"kind": "k", "question": "see <video>"}]},
            "the marks <video>, and the record names",
        ),
        (
            {"id": "x", "video": "a.mp4", "questions": [{"kind": "k", "question": "<video> or <video> ?"}]},
            "the marks <video> <video>, and the record names <video>",
        ),
        ({"id": "x", "video": "a.mp4", "media": [{"image": "b.png"}]}, "by its own name or in media, not both"),
        ({"id": "x", "media": [{"video": "a.mp4"}, {}]}, "names neither video nor image"),
        (
            {"id": "x", "media": [{"image": "b.png"}, {"video": "a.mp4", "start": 3, "end": 2}]},
            "media.1: start 3.0 must come before",
        ),
        (
            {"id": "x", "media": [{"video": "a"}, {"video": "b"}], "segments": [{"caption": "c"}]},
            "segments are those of one video, and 2 media are named",
        ),
        ({"id": "x", "messages": [{"role": "user", "content": "q"}]}, "user and assistant take turns"),
        (
            {"id": "x", "messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": " "}]},
            "a message of the assistant is blank",
        ),
        (
            {"id": "x", "messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "<image>"}]},
            "a message of the assistant",
        ),
        (
            {
                "id": "x",
                "questions": [{"kind": "k", "question": "q"}],
                "messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}],
            },
            "questions or messages, not both",
        ),
    ],
)
def test_a_bad_line_7_is_named_with_its_reason(tmp_path: Path, bad: object, reason: str) -> None:
    path = _file(tmp_path, *(_good(n) for n in range(1, 7)), bad, _good(8))
    with pytest.raises(ValueError) as error:
        read_records(path)
    message = str(error.value)
    assert f"{path} has 1 bad line(s)" in message
    assert "line 7: " in message
    assert reason in message


def test_blank_lines_count_but_do_not_matter(tmp_path: Path) -> None:
    path = _file(tmp_path, _good(1), "", _good(2), "  ")
    assert [record.line for record in read_records(path)] == [1, 3]


def test_all_bad_lines_are_listed_up_to_a_screenful(tmp_path: Path) -> None:
    path = _file(tmp_path, _good(1), *("broken" for _ in range(25)), {"id": "x", "segments": "y" * 5000})
    with pytest.raises(ValueError) as error:
        read_records(path)
    lines = str(error.value).splitlines()
    assert "26 bad line(s)" in lines[0]
    assert [line.split(":")[0].strip() for line in lines[1:11]] == [f"line {n}" for n in range(2, 12)]
    assert "16 more" in lines[11]
    assert len(lines) == 12
    assert max(map(len, lines[1:])) < 320


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    (tmp_path / "data.jsonl").write_bytes(b'{"id": "a"}\n{"id": "\xff"}\n')
    with pytest.raises(ValueError, match="line 2: not UTF-8"):
        read_records(tmp_path / "data.jsonl")


def test_missing_and_empty_files(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no record file .*gone\.jsonl"):
        read_records(tmp_path / "gone.jsonl")
    with pytest.raises(ValueError, match="holds no records"):
        read_records(_file(tmp_path))


def test_missing_media_is_refused_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "1.mp4").write_bytes(b"x")
    lines = [{"id": "a", "video": "videos/1.mp4"}, {"id": "b", "video": "videos/2.mp4"}, {"id": "c"}]
    path = _file(tmp_path, *lines)
    records = read_records(path)
    with pytest.raises(ValueError, match=r"data\.jsonl: in 1 record .*missing.*\n  line 2 .*'b'.*2\.mp4"):
        check_media(path, records)
    there = [records[0], records[2]]
    assert check_media(path, there) == there


def test_objects_have_boxes_in_the_frame_and_words_of_the_caption() -> None:
    box = [0, 0.25, 0.5, 1]
    found = SegmentRecord(caption="a dog runs", objects=[{"boxes": [None, box], "phrase": "dog"}])
    assert found.objects[0].boxes == [None, [0.0, 0.25, 0.5, 1.0]]
    wrong = {
        "left < right": {"boxes": [[0.5, 0, 0.5, 1]]},
        "from 0 to 1": {"boxes": [box, [0, 0, 1, 1.1]]},
        "seen nowhere": {"boxes": [None]},
        "at least 4 items": {"boxes": [[0, 0, 1]]},
    }
    for said, one in wrong.items():
        with pytest.raises(ValueError, match=said):
            SegmentRecord(caption="a dog runs", objects=[one])
