"""Small data sets in the formats that are exchanged, and what an import makes of them."""

import io
import json
from pathlib import Path
from typing import Any

from PIL import Image

from data_prep.import_data import main
from langdc.data.records import Record, check_media, read_records


def picture() -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (4, 4), "red").save(stream, "png")
    return stream.getvalue()


def put(folder: Path, rows: object, name: str = "train.json") -> Path:
    file = folder / name
    file.write_text("".join(json.dumps(row) + "\n" for row in rows) if name.endswith("l") else json.dumps(rows))  # pyright: ignore
    return file


def imported(source: Path | str, *more: str, code: int = 0) -> list[Record]:
    """The records, which training can read where they are allowed to lead to the media beside them."""
    out = (Path(source).parent if "/" in str(source) else Path()) / "out" / "mine.jsonl"
    assert main([str(source), "--out", str(out), *more]) == code
    return check_media(out, read_records(out), allow_outside=True)


def one(folder: Path, row: dict, *more: str) -> Record:
    (record,) = imported(put(folder, [row]), *more)
    return record


def llava(*said: str, **columns: object) -> dict:
    turns = [{"from": ("human", "gpt")[number % 2], "value": text} for number, text in enumerate(said)]
    return {"conversations": turns, **columns}


def messages(*said: Any, **columns: object) -> dict:
    turns = [{"role": ("user", "assistant")[number % 2], "content": content} for number, content in enumerate(said)]
    return {"messages": turns, **columns}


def said_of(record: Record) -> list[tuple[str, str]]:
    return [(turn.role, turn.content) for turn in record.messages]


def asked_of(record: Record) -> tuple[str, str, str, list[str]]:
    (asked,) = record.questions
    return asked.kind, asked.question, asked.answer, asked.options
