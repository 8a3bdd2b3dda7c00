"""`langdc data mix MIX --root DIR`: whether the training sets of a stage are complete, and their samples as records.

Prints the licence of each set, its number of samples, and what is missing or malformed. Without MIX: all of them.

DIR is the folder of VideoGPT+'s training set (huggingface.co/datasets/MBZUAI/VideoGPT-plus_Training_Dataset), as
`dataset_config.py` of the VideoGPT+ and LangDC repositories lays it out; for stage2a the one that holds
LLaVA-ReCap-558K. --captions FILE has records of the same videos with a caption for each segment: they are the targets
of stage2b, and what teacher forcing reads in choice and open.
"""

import argparse
import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.progress import track
from rich.table import Table

from langdc.config import check
from langdc.data.records import Record, SegmentRecord, listed, read_records, write_records
from langdc.jsonl import writing
from langdc.log import screen

_SHOWN = 5
_REQUEST = "Describe the image."  # where an image's caption stands without one
_GET_RECAP = "huggingface.co/datasets/lmms-lab/LLaVA-ReCap-558K"
_GET = "huggingface.co/datasets/MBZUAI/VideoGPT-plus_Training_Dataset"


@dataclass(frozen=True)
class _Source:
    """A published set: where its annotations and media are below the root, and under what terms."""

    annotations: str
    media: str
    licence: str
    captions: bool = False
    """Whether a reply describes the whole image, so that the captioner can learn it."""
    get: str = _GET


def _of_videos(name: str, folder: str, owner: str) -> _Source:
    licence = f"annotations CC BY-NC-SA 4.0; videos: {owner}"
    return _Source(f"annotations/{name}.json", f"instruction_tuning/{folder}", licence)


_COCO = "annotations CC BY 4.0; images: Flickr's terms"
_WEBVID = "WebVid's terms; no longer handed out"
_ACTIVITYNET = "ActivityNet's terms, from YouTube"
_CLEVRER = "CLEVRER, CC0"
_COCO_IMAGES = "pretraining/COCO/train2014"
_RECAP = "LLaVA-ReCap-558K/data"
# Names, files and folders: dataset_config.py of mbzuai-oryx/VideoGPT-plus and NIneeeeeem/LangDC.
SOURCES = {
    "cc595k": _Source("pretraining/CC3M-595K/chat.json", "pretraining/CC3M-595K", "CC-3M's terms", captions=True),
    "coco_cap": _Source("pretraining/COCO/coco_cap_chat.json", _COCO_IMAGES, _COCO, captions=True),
    "coco_reg": _Source("pretraining/COCO/coco_reg_chat.json", _COCO_IMAGES, _COCO),
    "coco_rec": _Source("pretraining/COCO/coco_rec_chat.json", _COCO_IMAGES, _COCO),
    "recap558k": _Source(_RECAP, _RECAP, "see its page; images: those of LAION, CC and SBU", True, _GET_RECAP),
    "k710": _of_videos("classification_k710", "k710", "Kinetics, from YouTube"),
    "ssv2": _of_videos("classification_ssv2", "ssv2", "Something-Something, research only"),
    "videochatgpt": _of_videos("conversation_videochatgpt", "Activity_Videos", _ACTIVITYNET),
    "vcg_human": _of_videos("vcg_human_annotated", "Activity_Videos", _ACTIVITYNET),
    "vcg_plus_112k": _of_videos("vcg-plus_112K", "Activity_Videos", _ACTIVITYNET),
    "videochat_caption": _of_videos("caption_videochat", "webvid", _WEBVID),
    "videochat": _of_videos("conversation_videochat1", "videochat_it", _WEBVID),
    "next_qa": _of_videos("reasoning_next_qa", "NExTQA", "NExT-QA, from VidOR and YFCC"),
    "clevrer_qa": _of_videos("reasoning_clevrer_qa", "clevrer", _CLEVRER),
    "clevrer_mc": _of_videos("reasoning_clevrer_mc", "clevrer", _CLEVRER),
    "webvid_qa": _of_videos("vqa_webvid_qa", "webvid", _WEBVID),
}
_CHOICE = ("k710", "ssv2", "videochatgpt", "next_qa", "clevrer_qa", "clevrer_mc", "webvid_qa")
# The groups PRETRAINING, cap_llavarecap, Total_vcap, MVBench_FINETUNING and VCGBench_FINETUNING of their config.
MIXES = {
    "stage1": ("cc595k",),
    "pretraining": ("cc595k", "coco_cap", "coco_reg", "coco_rec"),
    "stage2a": ("recap558k",),
    "stage2b": (*_CHOICE, "videochat"),
    "choice": _CHOICE,
    "open": ("videochatgpt", "vcg_human", "vcg_plus_112k", "videochat_caption", "videochat", "webvid_qa"),
}

_Captions = dict[Path, list[SegmentRecord]]


@dataclass
class _Found:
    """What a set comes to: the records that can be used, and what stands in the way of the others."""

    samples: int = 0
    records: list[Record] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    malformed: list[str] = field(default_factory=list)
    uncaptioned: int = 0


def main(argv: Sequence[str] | None = None) -> int:
    """0 when all is there, 1 when something is missing or malformed."""
    parser = argparse.ArgumentParser(prog="langdc data mix", description=__doc__)
    parser.add_argument("mix", nargs="?", choices=MIXES, help="what a stage learns from")
    parser.add_argument("--root", type=Path, help="the folder of the published sets")
    parser.add_argument("--captions", type=Path, help="records with segments' captions of the same videos")
    parser.add_argument("--without", nargs="+", default=[], choices=SOURCES, metavar="SET", help="sets to leave out")
    parser.add_argument("--out", type=Path, help="write the samples as records to this file")
    options, console = parser.parse_args(argv), screen()
    if options.mix is None:
        for mix, names in MIXES.items():
            files = (f"  {name}: {SOURCES[name].annotations}, media in {SOURCES[name].media}" for name in names)
            console.print("\n".join([mix, *files]))
        console.print(_licences(SOURCES))
        return 0
    names = [name for name in MIXES[options.mix] if name not in options.without]
    if options.root is None:
        raise ValueError("Say where the sets are: --root DIR.")
    if options.mix == "stage2b" and options.out is not None and options.captions is None:
        raise ValueError("stage2b is made of segments' captions, which are not published: --captions FILE.")
    absent = [name for name in names if not (options.root / SOURCES[name].annotations).exists()]
    captions = _read_captions(options.captions) if options.captions is not None else None
    place = None if options.out is None else options.out.parent
    found = {name: _read(name, options.root, place, captions, console) for name in names if name not in absent}
    console.print(_table(found, absent))
    console.print(_licences(names))
    for name, each in found.items():
        for what, lines in (("files are missing", each.missing), ("samples are malformed", each.malformed)):
            if lines:
                console.print(listed(f"{name}: {len(lines)} {what} and left out", lines, _SHOWN))
        if each.uncaptioned:
            console.print(f"{name}: {each.uncaptioned} samples have no captions.")
    for name in absent:
        source = SOURCES[name]
        console.print(f"{name}: there is no {options.root / source.annotations}. From {source.get}")
    if options.out is not None:
        if absent:
            raise ValueError(f"Nothing is written without {', '.join(absent)}. Fetch them, or --without {absent[0]}.")
        _write(options, found, captions, console)
    return int(bool(absent) or any(each.missing or each.malformed for each in found.values()))


def _read_captions(file: Path) -> _Captions:
    """Segments by the absolute path of their video."""
    return {
        (file.parent / record.video).resolve(): record.segments
        for record in read_records(file)
        if record.video is not None and record.segments
    }


def _read(name: str, root: Path, place: Path | None, captions: _Captions | None, console: Console) -> _Found:
    """Look through a set; `place` is the folder of the file to be written, None to look only."""
    source, found = SOURCES[name], _Found()
    packed = source.annotations == source.media  # images are unpacked once there is a place for them
    items = _rows(root / source.annotations, place, name) if packed else _items(root / source.annotations)
    media = (place or root) / name if packed else root / source.media
    for number, item in enumerate(track(items, name, console=console, disable=not console.is_terminal)):
        found.samples += 1
        try:
            record = _record(name, number, item, source.captions)
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            reason = f"has no {error}" if isinstance(error, KeyError) else " ".join(str(error).split())
            found.malformed.append(f"sample {number}: {reason}")
            continue
        file = (media / str(record.video or record.image)).resolve()
        if not file.is_file() and not (packed and place is None):
            found.missing.append(str(file))
            continue
        if record.video is not None and captions is not None:
            known = captions.get(file)
            found.uncaptioned += known is None
            record = record.model_copy(update={"segments": known or []})
        at = Path(os.path.relpath(file, (place or root).resolve())).as_posix()
        found.records.append(record.model_copy(update={"video" if record.video else "image": at}))
    return found


def _items(file: Path) -> list[dict]:
    try:
        items = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is not valid JSON ({error}); it was cut off. Fetch it again.") from None
    if not isinstance(items, list):
        raise ValueError(f"{file} holds a {type(items).__name__}; the published files are lists of samples.")
    return items


def _rows(folder: Path, place: Path | None, name: str) -> Iterator[dict]:
    """Samples of a set in Parquet files with the images in them, which are unpacked beside the file to be written."""
    import pyarrow.parquet as parquet

    files = sorted(folder.glob("*.parquet"))
    if not files:
        raise ValueError(f"{folder} holds no *.parquet. From {SOURCES[name].get}")
    columns = ["id", "conversations"] + (["image"] if place is not None else [])
    for file in files:
        for batch in parquet.ParquetFile(file).iter_batches(64, columns=columns):
            for row in batch.to_pylist():
                packed = row.get("image") or {}
                row["image"] = f"{row['id']}{Path(packed.get('path') or 'x.jpg').suffix}"
                if place is not None and packed.get("bytes") and not (place / name / row["image"]).is_file():
                    (place / name).mkdir(parents=True, exist_ok=True)
                    with writing(place / name / row["image"]) as partial:
                        partial.write_bytes(packed["bytes"])
                yield row


def _record(name: str, number: int, item: dict, is_caption: bool) -> Record:
    """A sample {"video" or "image", "conversations": [{"from": "human"|"gpt", "value"}]}; every turn is a question."""
    turns = [(turn["from"], re.sub("<image>|<video>", "", turn["value"]).strip()) for turn in item["conversations"]]
    if turns and turns[0][0] != "human":
        turns = turns[1:]  # as upstream does
    speakers = [speaker for speaker, _ in turns]
    if not turns or speakers != ["human", "gpt"] * (len(turns) // 2):
        raise ValueError(f"speakers are {', '.join(speakers) or 'none'}; human and gpt must take turns")
    texts = [text for _, text in turns]
    if not all(texts[1::2]):
        raise ValueError("answer: a reply is empty")
    kind = "image" if "image" in item else "video"
    questions = [
        {"kind": name, "question": asked or (_REQUEST if kind == "image" else ""), "answer": reply}
        for asked, reply in zip(texts[::2], texts[1::2], strict=True)
    ]
    segments = [{"caption": texts[1]}] if is_caption else []
    media = {kind: item[kind].replace("\\", "/")}
    return check(Record, {"id": f"{name}/{number}", "questions": questions, "segments": segments, **media}, "it")


def _write(options: argparse.Namespace, found: dict[str, _Found], captions: _Captions | None, console: Console) -> None:
    records = [record for each in found.values() for record in each.records]
    if options.mix == "stage2b":
        known = {record.video: record for record in records if record.segments}
        records = [record.model_copy(update={"questions": []}) for record in known.values()]
    if not records:
        raise ValueError("No sample can be used, so nothing is written; see above for what is missing.")
    write_records(options.out, records)
    console.print(f"Written: {options.out}, {len(records)} records.")
    if captions is None and options.mix in ("choice", "open"):
        console.print("Without --captions: set train.targets=none in stage 3, so that the captioner writes them.")


def _table(found: dict[str, _Found], absent: list[str]) -> Table:
    table = Table("set", "samples", "questions", "media missing", "malformed", box=None, pad_edge=False)
    for name, each in found.items():
        asked = sum(len(record.questions) for record in each.records)
        table.add_row(name, *map(str, (each.samples, asked, len(each.missing), len(each.malformed))))
    for name in absent:
        table.add_row(name, "absent")
    return table


def _licences(names: Iterable[str]) -> str:
    """A line per licence, with the sets that are under it."""
    under: dict[str, list[str]] = {}
    for name in names:
        under.setdefault(SOURCES[name].licence, []).append(name)
    return "\n".join(["Licences:", *(f"  {', '.join(sets)}: {licence}" for licence, sets in under.items())])
