"""Rows of data sets become records: their shape is recognised and said, and no row is left out in silence."""

import base64
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest

from data_prep.import_data import main
from tests.data_prep.imports import asked_of, imported, llava, messages, one, picture, put, said_of

TWO_TURNS = [("user", "who ?"), ("assistant", "a cat"), ("user", "where ?"), ("assistant", "here")]


# ---- shapes


def test_llava_conversations_keep_their_turns_and_marks_get_the_kind_of_the_medium(folder: Path, capsys) -> None:
    rows = [
        llava("<image>\nwho ?", "a cat", id="x", video="a.mp4", data_source="web"),
        llava("<image>\nwho ?", "a cat", "where ?", "here", id=7, video="b.mp4"),
        llava("who ?", "a cat", image="i.jpg"),
        llava("hi", "hello", image=None),
    ]
    first, second, third, fourth = imported(put(folder, rows))
    assert (first.id, first.video, asked_of(first)) == ("x", "../a.mp4", ("train", "<video>\nwho ?", "a cat", []))
    assert second.id == "7" and said_of(second) == [("user", "<video>\nwho ?"), *TWO_TURNS[1:]]
    assert (third.id, third.image, third.questions[0].question) == ("train/2", "../i.jpg", "who ?")
    assert not fourth.shown
    printed = capsys.readouterr().out
    assert "train.json: LLaVA conversations, 4 rows" in printed and "Not used: data_source (1)" in printed
    assert "4 records (2 with video, 1 with images, 1 of text alone)" in printed


def test_sharegpt_conversations_show_several_media_in_the_order_of_their_marks(folder: Path, capsys) -> None:
    talk = llava(
        "<image> and <video> and <image> ?", "no", images=["i.jpg", "j.png"], videos=["a.mp4"], system="be kind"
    )
    record = one(folder, talk)
    assert [medium.file for medium in record.media] == ["../i.jpg", "../a.mp4", "../j.png"]
    assert said_of(record)[:2] == [("system", "be kind"), ("user", "<image> and <video> and <image> ?")]
    assert "ShareGPT conversations" in capsys.readouterr().out


def test_messages_with_parts_unpack_what_is_inside(folder: Path) -> None:
    inside = "data:image/png;base64," + base64.b64encode(picture()).decode()
    parts = [
        {"type": "text", "text": "first "},
        {"type": "image_url", "image_url": {"url": inside}},
        {"type": "video", "video": "a.mp4"},
        {"type": "input_image", "image_url": (folder / "i.jpg").as_uri()},
        {"type": "text", "text": " last"},
    ]
    record = one(folder, messages(parts, [{"type": "output_text", "text": "yes"}]))
    assert asked_of(record)[1:3] == ("first <image><video><image> last", "yes")
    unpacked, *others = [str(medium.file) for medium in record.media]
    assert others == ["../a.mp4", "../i.jpg"]
    assert unpacked.startswith("mine_media/") and (folder / "out" / unpacked).read_bytes() == picture()


def test_parts_without_a_file_take_it_from_the_columns(folder: Path) -> None:
    parts = [{"type": "image", "text": None}, {"type": "video"}, {"type": "text", "text": "same ?"}]
    packed = {"bytes": picture(), "path": None}
    source = folder / "x.parquet"
    row = messages(parts, [{"type": "text", "text": "no"}], videos=["b.mp4"], images=[packed])
    pa.parquet.write_table(pa.Table.from_pylist([row]), source)
    (record,) = imported(source)
    assert asked_of(record)[1] == "<image><video>same ?"
    assert [Path(str(medium.file)).suffix for medium in record.media] == [".jpg", ".mp4"]


@pytest.mark.parametrize(
    ("columns", "letter"),
    [
        ({"options": ["dog", "cat"], "answer": "B"}, "B"),
        ({"options": ["dog", "cat"], "answer": "(b)"}, "B"),
        ({"choices": ["dog", "cat"], "answer": "Cat"}, "B"),
        ({"candidates": ["dog", "cat"], "answer": 0}, "A"),
        ({"options": ["A. dog", "B. cat"], "solution": "<answer>B</answer>"}, "B"),
        ({"options": ["dog", "cat"], "answer": "B. cat"}, "B"),
        ({"options": "['dog', 'cat']", "answer": "1"}, "B"),
        ({"a0": "dog", "a1": "cat", "answer": 1}, "B"),
        ({"option_a": "dog", "option_b": "cat", "answer": "A"}, "A"),
        ({"option_1": "dog", "option_2": "cat", "answer": "cat"}, "B"),
        ({"option_1": "dog", "option_2": "cat", "answer": 1}, "A"),
        ({"option1": "dog", "option2": "cat", "answer": "2"}, "B"),
        ({"option_0": "dog", "option_1": "cat", "answer": 1}, "B"),
        ({"Option_A": "dog", "Option_B": "cat", "Answer": "b"}, "B"),
        ({"A": "dog", "B": "cat", "answer": "B"}, "B"),
        ({"options": ["dog", "cat"]}, ""),
        ({"options": ["B) cat", "A) dog"], "answer": "B"}, "B"),
        ({"options": ["(b) cat", "(a) dog"], "answer": "cat"}, "B"),
        ({"options": ["B. cat", "A. dog"], "answer": "A. dog"}, "A"),
        ({"option_a": "dog", "option_b": "cat", "option_c": "", "answer": "B"}, "B"),
    ],
)
def test_options_and_the_letter_of_the_answer(folder: Path, columns: dict, letter: str) -> None:
    record = one(folder, {"video": "a.mp4", "question": "which ?", "task": "animal", **columns})
    assert asked_of(record) == ("animal", "which ?", letter, ["dog", "cat"])


@pytest.mark.parametrize(
    "options", [["a.m.", "p.m."], ["A.D.", "B.C."], ["C. Darwin", "J. Watt"], ["C: disk", "D: disk"], ["None", "nan"]]
)
def test_what_is_no_lettering_stays(folder: Path, options: list[str]) -> None:
    record = one(folder, {"video": "a.mp4", "question": "which ?", "options": options, "answer": options[0]})
    assert asked_of(record)[2:] == ("A", options)


@pytest.mark.parametrize(
    ("row", "asked", "answer"),
    [
        ({"problem": "why ?", "solution": "so"}, "why ?", "so"),
        ({"prompt": "why ?", "response": "so"}, "why ?", "so"),
        ({"query": "why ?", "answer": "so"}, "why ?", "so"),
        ({"instruction": "say it", "input": "in french", "output": "oui"}, "say it\nin french", "oui"),
        ({"instruction": "say it", "input": "", "output": "yes"}, "say it", "yes"),
        ({"caption": "a red door"}, "Describe the video.", "a red door"),
    ],
)
def test_questions_and_captions_by_the_names_of_columns(folder: Path, row: dict, asked: str, answer: str) -> None:
    assert asked_of(one(folder, {"video": "a.mp4", **row}, "--name", "mine")) == ("mine", asked, answer, [])


def test_a_caption_of_one_image_is_its_segment_too(folder: Path) -> None:
    record = one(folder, {"file_name": "i.jpg", "text": "a red door"}, "--request", "what is there ?")
    assert (record.image, asked_of(record)[1], record.segments[0].caption) == (
        "../i.jpg",
        "what is there ?",
        "a red door",
    )


def test_where_a_conversation_asks_nothing_the_request_does(folder: Path, capsys) -> None:
    row = llava("<image>", "a red door", image="i.jpg")
    assert main([str(put(folder, [row])), "--out", str(folder / "o.jsonl")]) == 2
    assert "--request says what to ask" in capsys.readouterr().out
    assert one(folder, row, "--request", "what is it ?").questions[0].question == "<image>\nwhat is it ?"


@pytest.mark.parametrize(
    ("columns", "start", "end"),
    [
        ({"start": 1, "end": 2.5}, 1, 2.5),
        ({"start_time": "0:01", "end_time": "1:02.5"}, 1, 62.5),
        ({"timestamp": [3, 4]}, 3, 4),
        ({"end": 4}, None, 4),
        ({"start": None, "end": None}, None, None),
    ],
)
def test_bounds_of_a_clip(folder: Path, columns: dict, start: float | None, end: float | None) -> None:
    record = one(folder, {"video": "a.mp4", "caption": "a cat", **columns})
    assert (record.start, record.end) == (start, end)


def test_a_leading_turn_of_the_assistant_is_left_out_and_said(folder: Path, capsys) -> None:
    row = llava("who ?", "a cat", video="a.mp4")
    row["conversations"].insert(0, {"from": "gpt", "value": "hello"})
    assert asked_of(one(folder, row))[1:3] == ("who ?", "a cat")
    assert "1 conversation begins with the assistant; this turn is left out." in capsys.readouterr().out


# ---- what cannot be used


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (llava("<video> or <video> ?", "no", video="a.mp4"), "the marks <video> <video>, and the row names <video>"),
        (llava("<video>\nwho ?", "no", video=None), "the marks <video>, and the row names no media"),
        (llava("<image><image> ?", "no", video="a.mp4", image="i.jpg"), "the row names <video> <image>"),
        (llava("who ?", "see <image>", image="i.jpg"), "a turn of the assistant shows a medium"),
        (llava("who ?", "a cat", "where ?", video="a.mp4"), "the turns are user, assistant, user"),
        (llava("who ?", " ", video="a.mp4"), "a reply of the assistant is blank"),
        (llava("who ?", "a cat", video=7), "video: 7, where text must be"),
        (llava("who ?", "a cat", videos=["a.mp4", None]), "videos: null, where text must be"),
        (llava("who ?", "a cat", video={"bytes": "AAAA"}), "video: the file is empty, or not given as bytes"),
        (llava("who ?", "a cat", video="https://x.org/a.mp4"), "is not on this machine; fetch it"),
        (llava("who ?", "a cat", video="a.mp4", image=""), ""),
        ({"conversations": [{"from": "human", "value": None}]}, "conversations.0.value: null, where text must be"),
        ({"conversations": [{"from": "human", "value": 5}]}, "conversations.0.value: 5, where text must be"),
        ({"conversations": [{"from": "gpt", "value": "hi"}], "video": "a.mp4"}, "the turns are assistant;"),
        ({"conversations": ["hi"]}, "conversations.0: a str, where an object"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages.0.role: 'tool'; allowed are user, assistant"),
        (messages([{"type": "audio"}], "x"), "messages.0.content.0.type: 'audio'; allowed are text"),
        (
            messages([{"type": "image", "image": "data:image/png;base64,@"}, {"type": "text", "text": "?"}], "x"),
            "base64",
        ),
        (
            messages([{"type": "video", "video": "a.mp4"}], "x", video="b.mp4"),
            "messages.0.content.0.video names media, and",
        ),
        ({"question": "q", "answer": None}, "answer: null, where text must be"),
        ({"question": 5, "answer": "x"}, "question: 5, where text must be"),
        ({"video": "a.mp4", "question": None, "answer": "x"}, "`question` is null"),
        ({"question": "q", "answer": "C", "options": ["x", "y"]}, "answer: 'C' is none of the 2 options"),
        ({"question": "q", "answer": "A", "options": ["B", "A"]}, "answer: 'A' may be A or B; give the letter"),
        ({"question": "q", "answer": 1, "options": ["1", "2"]}, "answer: '1' may be A or B"),
        ({"question": "q", "answer": "x", "options": ["x", "x"]}, "may be A or B"),
        ({"question": "q", "answer": 1, "option_a": "x", "option_b": "y"}, "have letters; give the letter"),
        ({"question": "q", "answer": 1, "A": "1", "B": "2"}, "have letters; give the letter"),
        ({"question": "q", "answer": "2", "option_1": "2", "option_2": "3"}, "may be A or B; give the letter"),
        ({"question": "q", "answer": 0, "option_1": "x", "option_2": "y"}, "none of the 2 options, which count from 1"),
        ({"question": "q", "answer": 2, "options": ["x", "y"]}, "none of the 2 options, which count from 0"),
        ({"video": "a.mp4", "question": "", "answer": "x"}, "`question` is blank"),
        (messages([{"type": "image", "image": "i.jpg", "start": 1}, {"type": "text", "text": "?"}], "x"), "start"),
        (messages([{"type": "video", "video": "a.mp4", "end": 2}, {"type": "text", "text": "?"}], "x", end=3), "both"),
        ({"question": "q", "answer": "x", "options": ["x"]}, "one option"),
        ({"question": "q", "answer": "A", "option_a": "x", "option_b": ""}, "one option"),
        ({"question": "q", "answer": "A", "options": ["A) x", "A) y"]}, "their letters are A, A; give A, B"),
        ({"question": "q", "answer": "A", "options": ["B) x", "C) y"]}, "their letters are B, C; give A, B"),
        ({"question": "q", "answer": "A", "options": ["A. x", "C. y"]}, "their letters are A, C; give A, B"),
        ({"question": "q", "answer": 1, "options": ["B) x", "A) y"]}, "the options have letters; give the letter"),
        ({"question": "q", "answer": "A", "options": ["x", " "]}, "options: option B is blank"),
        ({"question": "q", "answer": "A", "options": ["A. x", "B. "]}, "options: option B is blank"),
        ({"question": "q", "answer": "B", "option_a": "", "option_b": "x", "option_c": "y"}, "missing or blank"),
        ({"question": "q", "answer": "A", "A": "x", "B": "", "C": "y"}, "C: an option before it is missing or blank"),
        (
            {"question": "q", "option_a": "x", "option_b": "y", "option_d": "z"},
            "option_d: an option before it is missing",
        ),
        ({"caption": "a cat"}, "it has a caption, and names no video or image"),
        ({"video": "a.mp4", "sentence": "a cat"}, "none of its columns is known to hold text"),
        ({"video": "a.mp4", "caption": "a cat", "start": 2, "end": 1}, "must come before end"),
        ({"image": "i.jpg", "caption": "a cat", "start": 2}, "start: of which video? The row names <image>"),
        *(
            ({"video": "a.mp4", "caption": "a cat", "start": bad, "end": 999}, f"start: {bad!r} is no time")
            for bad in (
                "soon",
                "1:-2",
                "-1:02",
                "1:75",
                "1:60:00",
                "1::2",
                "1:",
                "1:2:3:4",
                "1.5:02",
                "1_0",
                "nan",
                -2,
                "",
            )
        ),
        ([1, 2], "it is a list, where an object"),
    ],
)
def test_a_row_that_cannot_be_used_is_named_with_its_reason(folder: Path, capsys, row: Any, reason: str) -> None:
    good = {"video": "a.mp4", "caption": "a cat"}
    records = imported(put(folder, [good, row, good]), code=int(bool(reason)))
    printed = capsys.readouterr().out
    if reason:
        assert len(records) == 2 and "1 row cannot be used and is left out" in printed
        assert any("row 1: " in line and reason in line for line in printed.splitlines())
    else:
        assert len(records) == 3


def test_two_turns_of_one_role_are_refused(folder: Path, capsys) -> None:
    row = llava("who ?", "a cat", video="a.mp4")
    row["conversations"].append({"from": "gpt", "value": "a dog"})
    assert main([str(put(folder, [row])), "--out", str(folder / "o.jsonl")]) == 2
    assert "the turns are user, assistant, assistant" in capsys.readouterr().out
    assert not (folder / "o.jsonl").exists()


def test_missing_files_are_counted_with_their_place(folder: Path, capsys) -> None:
    rows = [{"video": name, "caption": "x"} for name in ("a.mp4", "gone.mp4", "x" * 300, "sub\\e.mp4", "c d")]
    records = imported(put(folder, rows, "rows.jsonl"), code=1)
    assert [record.video for record in records] == ["../a.mp4", "../sub/e.mp4", "../c d.mov"]
    printed = capsys.readouterr().out
    assert "2 rows name a file that is missing and are left out" in printed
    assert f"line 2: video: there is no file {folder / 'gone.mp4'}" in printed and "line 3: " in printed


def test_media_begin_in_another_folder(folder: Path) -> None:
    (folder / "elsewhere").mkdir()
    source = put(folder / "elsewhere", [{"video": "e.mp4", "caption": "x"}])
    (record,) = imported(source, "--media", str(folder / "sub"))
    assert record.video == "../../sub/e.mp4"


def test_repeated_ids_get_a_number(folder: Path, capsys) -> None:
    rows = [{"id": name, "video": "a.mp4", "caption": "x"} for name in ("v", "v", "v#2", "v", "w")]
    assert [record.id for record in imported(put(folder, rows))] == ["v", "v#2", "v#2#2", "v#3", "w"]
    assert "3 ids were there already" in capsys.readouterr().out


def test_bounds_in_parts_of_messages_are_taken_and_what_nothing_reads_is_named(folder: Path, capsys) -> None:
    """As qwen_vl_utils and OpenAI's parts have them, in the part or inside its url."""
    part = {"type": "video", "video": "a.mp4", "video_start": 1, "video_end": "0:02", "fps": 2.0, "nframes": None}
    nested = {"type": "video_url", "video_url": {"url": "b.mp4", "video_start": 3.5, "min_pixels": 9}}
    image = {"type": "image_url", "image_url": {"url": "i.jpg", "detail": "low"}, "max_pixels": 7}
    row = messages([part, image, nested, {"type": "text", "text": "same ?", "cached": True}], "no")
    row["messages"][1]["weight"] = 0
    shown = [(medium.start, medium.end) for medium in one(folder, row).media]
    assert shown == [(1, 2), (None, None), (3.5, None)]
    said = capsys.readouterr().out.splitlines()
    (unused,) = [line for line in said if line.startswith("Not used:")]
    named = ("cached", "fps", "image_url.detail", "max_pixels", "video_url.min_pixels")
    assert unused == f"Not used: {', '.join(f'messages.content.{name} (1)' for name in named)}, messages.weight (1)"


def test_bounds_of_parts_belong_to_the_files_that_columns_name(folder: Path) -> None:
    parts = [{"type": "video", "video_start": 1}, {"type": "image"}, {"type": "video", "end": 2}]
    row = messages([*parts, {"type": "text", "text": "?"}], "no", videos=["a.mp4", "b.mp4"], images=["i.jpg"])
    record = one(folder, row)
    assert [(medium.file, medium.start, medium.end) for medium in record.media] == [
        ("../a.mp4", 1, None),
        ("../i.jpg", None, None),
        ("../b.mp4", None, 2),
    ]


def test_a_table_with_other_names_of_columns_is_explained_once(folder: Path, capsys) -> None:
    """Case and blanks do not matter, unknown names come once with the nearest, and missing answers are counted."""
    table = folder / "t.csv"
    table.write_text("Video; QUESTION;awnser\na.mp4;who ?;x\nb.mp4;where ?;y\na.mp4;;z\n")
    first, second = imported(table, code=1)
    assert (first.video, asked_of(second)[1:3]) == ("../a.mp4", ("where ?", ""))
    said = capsys.readouterr().out
    assert "Not used: awnser (3, perhaps answer)" in said and "line 4: `question` is blank" in said
    assert "2 of 2 questions have no answer." in said and "1 row cannot be used and is left out" in said
    table.write_text("video;frage\n" + "a.mp4;wer ?\n" * 40)
    assert main([str(table), "--out", str(folder / "o.jsonl")]) == 2
    said = capsys.readouterr().out
    assert "line 2 and 39 more: none of its columns is known" in said and "line 3" not in said
    assert "Not used: frage (40)" in said
    table.write_text("video,question,question\na.mp4,x,y\n")
    assert main([str(table), "--out", str(folder / "o.jsonl")]) == 2
    assert "two columns have the name 'question'" in capsys.readouterr().err


def test_a_wrong_folder_of_media_is_named(folder: Path, capsys) -> None:
    source = put(folder, [{"video": "a.mp4", "question": "q", "answer": "x"}] * 3)
    assert main([str(source), "--out", str(folder / "o.jsonl"), "--media", str(folder / "sub")]) == 2
    said = capsys.readouterr().out
    assert f"train.json: questions, 3 rows; none of their files is in {folder / 'sub'}/ (--media)" in said
    assert "row 0 and 2 more: video: there is no file" in said


def test_one_of_something_is_no_plural(folder: Path, capsys) -> None:
    rows = [
        {"id": "v", "video": "a.mp4", "question": "q"},
        {"id": "v", "video": "a.mp4", "question": "q", "answer": "x"},
    ]
    assert len(imported(put(folder, [*rows, {"video": "a.mp4", "caption": "x", "start": 2, "end": 1}]), code=1)) == 2
    said = capsys.readouterr().out
    for text in ("1 id was there already and ends in", "1 of 2 questions has no answer", "1 row cannot be used and is",
                 "its record has 1 mistake:", "Written: "):  # fmt: skip
        assert text in said
    assert len(imported(put(folder, rows[1:]))) == 1
    said = capsys.readouterr().out
    assert "questions, 1 row\n" in said and "1 record (1 with video)" in said


def test_a_key_given_twice_and_utf_16_are_refused(folder: Path, capsys) -> None:
    (folder / "twice.json").write_text('[{"video": "a.mp4", "question": "q", "answer": "a", "answer": "b"}]')
    (folder / "wide.csv").write_bytes("video,question,answer\na.mp4,q,a\n".encode("utf-16"))
    for name, reason in (("twice.json", "it gives 'answer' twice"), ("wide.csv", "it may be UTF-16")):
        assert main([str(folder / name), "--out", str(folder / "out.jsonl")]) == 2
        assert reason in capsys.readouterr().err
