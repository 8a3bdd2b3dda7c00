"""Rows of data sets as they are exchanged: JSON, JSON lines, CSV, Parquet, tars, folders of videos, `datasets`.

Each row comes with its place: lines are counted from 1, rows from 0. Where one cannot be read, a ValueError stands in
its place; one that concerns a whole file is raised.
"""

import csv
import json
import re
import tarfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from itertools import chain, groupby
from pathlib import Path
from typing import Any

from langdc import jsonl
from langdc.prepare.texts import BOUNDS
from langdc.video import VIDEO_SUFFIXES, is_image

Rows = Iterator[tuple[str, Any]]
_KNOWN = (
    "A source is a .json, .jsonl, .csv, .tsv, .parquet or .tar file, a folder of *.parquet, of *.tar or of videos with "
    ".txt or .srt files beside them, a folder that `datasets` saved, or a hub name: owner/name or owner/name:config."
)
_BATCH = 16
_MEMBER_BYTES = 1 << 32  # of a file in a tar, which is read whole; a few compressed bytes may promise any size
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+(:[\w.-]+)?")
_TAR = re.compile(r"\.(tar|tar\.gz|tgz)$")
_TIMES = re.compile(r"\d+:\d\d:\d\d[,.]\d+\s*-->")


def read(source: str, split: str | None = None) -> tuple[str, Rows]:
    """What a source is, where its name does not tell, and its rows with their places; ValueError if it is none.

    `split`: which part of a set of `datasets`.
    """
    path, suffix = Path(source), Path(source).suffix.lower()
    saved = any((path / f"{name}.json").is_file() for name in ("dataset_info", "dataset_dict"))
    if saved or (not path.exists() and _HUB_NAME.fullmatch(source) and not path.parent.is_dir()):
        return " (datasets)", _of_datasets(source, split, saved)
    if split is not None:
        raise ValueError(f"--split {split}: {source} is no set of `datasets`, so it has no splits. Leave it out.")
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.is_file() and not file.name.startswith("."))
        if found := [file for file in files if file.suffix == ".parquet"]:
            return f" ({len(found)} Parquet files)", parquet(found)
        if found := [file for file in files if _TAR.search(file.name)]:
            return f" ({len(found)} tars)", _of_tars(found)
        if found := [file for file in files if file.suffix.lower() in VIDEO_SUFFIXES]:
            return f" ({len(found)} videos)", _of_videos(path, files)
    if path.is_file() and suffix == ".json":
        return _of_json(path)
    if path.is_file() and suffix in (".jsonl", ".csv", ".tsv"):
        return "", _of_lines(path) if suffix == ".jsonl" else _of_table(path)
    if path.is_file() and (suffix == ".parquet" or _TAR.search(path.name)):
        return "", parquet([path]) if suffix == ".parquet" else _of_tars([path])
    raise ValueError(f"{source} {'is in no known format' if path.exists() else 'is not there'}. {_KNOWN}")


# ---- text


def _tried(read_one: Callable[..., dict], *given: Any) -> dict | ValueError:
    try:
        return read_one(*given)
    except ValueError as error:
        return error


def _of_json(path: Path) -> tuple[str, Rows]:
    """Of a list, of {"data": [...]}, or of JSON lines."""
    content = path.read_bytes()
    try:
        value = json.loads(content.decode("utf-8-sig", "surrogateescape"), object_pairs_hook=jsonl.object_of_pairs)
        content.decode()
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ValueError(f"{path}, line {line}, is not UTF-8 text.") from None
    except json.JSONDecodeError as error:
        if error.msg == "Extra data":
            return " (JSON lines)", _of_lines(path)
        why = f"line {error.lineno}: {error.msg}"
        raise ValueError(f"{path} is not valid JSON ({why}); it was cut off or changed. Fetch it again.") from None
    except RecursionError:
        raise ValueError(f"{path} is nested too deeply. Fetch it again.") from None
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    items = value.get("data") if isinstance(value, dict) else value
    if not isinstance(items, list):
        raise ValueError(f'{path} holds a {type(value).__name__}; give a list of rows, or {{"data": [...]}}.')
    return "", ((f"row {number}", item) for number, item in enumerate(items))


def _of_lines(path: Path) -> Rows:
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                yield f"line {number}", _tried(jsonl.parse, line)


def _of_table(path: Path) -> Rows:
    """Of CSV with commas, semicolons or tabs."""
    csv.field_size_limit(1 << 30)
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        comma = "\t" if path.suffix == ".tsv" else max(",;\t", key=file.readline().count)
        file.seek(0)
        rows = csv.DictReader(file, delimiter=comma, strict=True)
        try:
            _check_names(path, [name for name in rows.fieldnames or () if name])
            for row in rows:
                yield f"line {rows.line_num}", _tried(_cells, row)
        except csv.Error as error:
            raise ValueError(f"{path}, line {rows.reader.line_num}: {error}. Quote cells as CSV asks.") from None


def _check_names(path: Path, names: Sequence[str]) -> None:
    if any("\udc80" <= letter <= "\udcff" or letter == "\0" for letter in "".join(names)):
        raise ValueError(f"{path}: its first line is not UTF-8 text; it may be UTF-16. Write it as UTF-8.")
    if twice := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"{path}: two columns have the name {twice[0]!r}. Rename one, or take it out.")


def _cells(row: dict) -> dict:
    if None in row or None in row.values():
        raise ValueError("it has another number of cells than the first line has names")
    if any("\udc80" <= letter <= "\udcff" for letter in "".join(row.values())):
        raise ValueError("not UTF-8 text")
    return {name: cell for name, cell in row.items() if cell or name.strip().casefold() not in BOUNDS}


def _text_file(suffix: str, content: bytes) -> dict:
    """What a .txt (what is shown) or .srt file (what is said) adds to the row of its video."""
    try:
        text = content.decode("utf-8-sig").strip()
    except UnicodeDecodeError as error:
        raise ValueError(f"its {suffix} is not UTF-8 text (byte {error.start + 1})") from None
    return {"caption": text} if suffix == ".txt" else {"context": subtitles(text)}


def subtitles(text: str) -> str:
    """The spoken text of a .srt file, without numbers, times and tags; blank lines may be missing."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    timed = [*(bool(_TIMES.match(line)) for line in lines), False]
    if lines and not any(timed):
        raise ValueError("its .srt has no line like 00:00:01,240 --> 00:00:06,879")
    numbers = [bool(lines[0].isdigit() and line.isdigit() and timed[n + 1]) for n, line in enumerate(lines)]
    said = (line for line, *left_out in zip(lines, timed, numbers, strict=False) if not any(left_out))
    return "\n".join(filter(None, (re.sub(r"<[^>]*>|\{\\[^}]*\}", "", line).strip() for line in said)))


# ---- folders and archives


def parquet(files: Sequence[Path], columns: list[str] | None = None) -> Rows:
    """Rows of Parquet files, of all columns or of some."""
    import pyarrow
    import pyarrow.parquet

    for file in files:
        try:
            opened = pyarrow.parquet.ParquetFile(file)
            _check_names(file, opened.schema_arrow.names)
            batches = opened.iter_batches(_BATCH, columns=columns)
            rows = (row for batch in batches for row in batch.to_pylist())
            yield from ((f"{file.name}, row {number}", row) for number, row in enumerate(rows))
        except pyarrow.ArrowException as error:
            raise ValueError(f"{file} is no whole Parquet file ({error}). Fetch it again.") from None


def _of_tars(files: Sequence[Path]) -> Rows:
    """WebDataset: consecutive files that have all but their suffixes in common are a row."""
    for file in files:
        try:
            with tarfile.open(file, "r|*") as tar:
                members = (each for each in tar if each.isfile() and not Path(each.name).name.startswith("."))
                for key, group in groupby(map(_small, members), lambda each: re.sub(r"\.[^/]*$", "", each.name)):
                    contents = {each.name[len(key) + 1 :]: tar.extractfile(each).read() for each in group}  # pyright: ignore
                    yield f"{file.name}, {key}", _tried(_of_members, key, contents)
            with file.open("rb") as opened:  # tarfile is silent where a tar is cut between two members
                opened.seek(max(0, file.stat().st_size - 1024))
                if file.suffix == ".tar" and opened.read().strip(b"\0"):
                    raise EOFError("its end is missing")
        except (tarfile.TarError, EOFError, zlib.error) as error:
            raise ValueError(f"{file} is no whole tar ({error}). Fetch it again.") from None


def _small(member: tarfile.TarInfo) -> tarfile.TarInfo:
    if member.size > _MEMBER_BYTES:
        raise ValueError(f"{member.name} takes {member.size:,} bytes in its tar. Unpack it, and import the folder.")
    return member


def _of_members(key: str, contents: dict[str, bytes]) -> dict:
    row: dict[str, Any] = {}
    parsed, media = {"id": key}, {}
    for name, content in contents.items():
        path = f"{key}.{name}"
        suffix = Path(path).suffix.lower()
        if suffix == ".json":
            parsed |= jsonl.parse(content)
        elif suffix in (".txt", ".srt"):
            row |= _text_file(suffix, content)
        elif is_image(path) or suffix in VIDEO_SUFFIXES:
            media.setdefault("image" if is_image(path) else "video", []).append({"bytes": content, "path": path})
        else:
            row[name] = content
    return parsed | row | media


def _of_videos(folder: Path, files: Sequence[Path]) -> Rows:
    """A row per video, with the .txt and .srt of its name."""
    texts = {file for file in files if file.suffix in (".txt", ".srt")}
    videos = [file for file in files if file.suffix.lower() in VIDEO_SUFFIXES]
    for video in videos:
        name = video.relative_to(folder)
        row = {"id": name.with_suffix("").as_posix(), "video": name.as_posix()}
        beside = [file for suffix in (".txt", ".srt") if (file := video.with_suffix(suffix)) in texts]
        try:
            added = [_text_file(file.suffix, file.read_bytes()) for file in beside]
            yield row["video"], dict(chain(row.items(), *(each.items() for each in added)))
        except ValueError as error:
            yield row["video"], error
    for file in sorted(texts - {video.with_suffix(suffix) for video in videos for suffix in (".txt", ".srt")}):
        yield file.relative_to(folder).as_posix(), ValueError("no video has this name")


def _of_datasets(source: str, split: str | None, saved: bool) -> Rows:
    """Rows as they are stored: images and videos are not decoded."""
    import datasets

    name, _, config = source.partition(":")
    hub = {"path": name, "name": config or None, "split": split}
    try:
        found: Any = datasets.load_from_disk(source) if saved else datasets.load_dataset(**hub)
    except Exception as error:  # those of datasets, of the hub and of its HTTP client have no class in common
        raise ValueError(f"{source} was not loaded ({str(error).strip().partition(chr(10))[0]}). {_KNOWN}") from None
    if isinstance(found, dict):
        if split not in found and (split is not None or len(found) > 1):
            given = "Without --split" if split is None else f"--split {split}"
            raise ValueError(f"{given}: {source} has {', '.join(found)}. Name one of them.")
        found = found[split or next(iter(found))]
    rows = (row for batch in found.with_format("arrow").iter(_BATCH) for row in batch.to_pylist())
    yield from ((f"row {number}", row) for number, row in enumerate(rows))
