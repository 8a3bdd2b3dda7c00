"""`langdc data mix MIX --root DIR`: whether the training sets of a stage are complete, and their samples as records.

Prints the licence of each set, its number of samples, and what is missing or malformed. Without MIX: all of them.

DIR is the folder of VideoGPT+'s training set (huggingface.co/datasets/MBZUAI/VideoGPT-plus_Training_Dataset), as
`dataset_config.py` of the VideoGPT+ and LangDC repositories lays it out; for stage2a the one that holds
LLaVA-ReCap-558K. --captions FILE has records of the same videos with a caption for each segment: they are the targets
of stage2b, and what teacher forcing reads in choice and open.
"""

import argparse
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from langdc.data.records import MARKS, Record, SegmentRecord, listed, read_records, write_records
from langdc.jsonl import check_output
from langdc.log import screen, track
from langdc.prepare.importing import Importer, MissingFile
from langdc.prepare.rows import parquet, read
from langdc.tools.options import add_outside

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
    dropped: int = 0


def main(argv: Sequence[str] | None = None) -> int:
    """0 when all is there, 1 when something is missing or malformed."""
    parser = argparse.ArgumentParser(prog="langdc data mix", description=__doc__)
    parser.add_argument("mix", nargs="?", choices=MIXES, help="what a stage learns from")
    parser.add_argument("--root", type=Path, help="the folder of the published sets")
    parser.add_argument("--captions", type=Path, help="records with segments' captions of the same videos")
    parser.add_argument("--without", nargs="+", default=[], choices=SOURCES, metavar="SET", help="sets to leave out")
    parser.add_argument("--out", type=Path, help="write the samples as records to this file")
    add_outside(parser)
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
    if options.out is not None:
        check_output(options.out)
    if options.mix == "stage2b" and options.out is not None and options.captions is None:
        raise ValueError("stage2b is made of segments' captions, which are not published: --captions FILE.")
    absent = [name for name in names if not (options.root / SOURCES[name].annotations).exists()]
    captions = _read_captions(options.captions) if options.captions is not None else None
    found = {name: _read(name, options, captions, console) for name in names if name not in absent}
    console.print(_table(found, absent))
    console.print(_licences(names))
    for name, each in found.items():
        for what, lines in (("files are missing", each.missing), ("samples are malformed", each.malformed)):
            if lines:
                console.print(listed(f"{name}: {len(lines)} {what} and left out", lines, _SHOWN))
        if each.uncaptioned:
            console.print(f"{name}: {each.uncaptioned} samples have no captions.")
        if each.dropped:
            console.print(f"{name}: {each.dropped} samples begin with a reply, which is left out, as upstream does.")
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


def _read(name: str, options: argparse.Namespace, captions: _Captions | None, console: Console) -> _Found:
    """Look through a set."""
    root, place = options.root, None if options.out is None else options.out.parent
    source, found, base = SOURCES[name], _Found(), place or root
    importer = Importer(name, root / source.media, base, None if place is None else place / name)
    importer.allow_outside = options.allow_outside
    file = root / source.annotations
    rows = _images(file, name, place is not None) if source.annotations == source.media else read(str(file))[1]
    for number, (_, row) in enumerate(track(rows, None, f"Samples of {name}")):
        found.samples += 1
        try:
            record = _record(importer, row, f"{name}/{number}", source.captions)
        except MissingFile as error:
            found.missing.append(str(error))
            continue
        except ValueError as error:
            found.malformed.append(f"sample {number}: {' '.join(str(error).split())}")
            continue
        if record.video is not None and captions is not None:
            known = captions.get((base / record.video).resolve())
            found.uncaptioned += known is None
            record = record.model_copy(update={"segments": known or []})
        found.records.append(record)
    found.dropped = importer.dropped
    return found


def _images(folder: Path, name: str, unpack: bool) -> Iterator[tuple[str, dict]]:
    """Rows of a set in Parquet files with the images in them, which are read only to be unpacked."""
    files = sorted(folder.glob("*.parquet"))
    if not files:
        raise ValueError(f"{folder} holds no *.parquet. From {SOURCES[name].get}")
    for where, row in parquet(files, ["id", "conversations", *(["image"] if unpack else [])]):
        yield where, row if unpack else row | {"image": b"not read"}


def _record(importer: Importer, row: Any, identity: str, is_caption: bool) -> Record:
    """A sample {"video" or "image", "conversations": [{"from": "human"|"gpt", "value"}]}; ValueError if it is none.

    Videos and images stand before the text that shows them, as upstream moves them.
    """
    request = _REQUEST if isinstance(row, dict) and "image" in row else None
    record = importer.record({**row, "id": identity} if isinstance(row, dict) else row, identity, request)
    if not record.shown or not (record.questions or record.messages):
        raise ValueError("it has no video or image, or no conversations")
    questions, messages = record.questions, record.messages
    if not record.media:  # one medium stands before the question without a mark
        questions = [each.model_copy(update={"question": MARKS.sub("", each.question).strip()}) for each in questions]
    messages = [each.model_copy(update={"content": _media_first(each.content)}) for each in messages]
    reply = questions[0].answer if questions else next(each.content for each in messages if each.role == "assistant")
    segments = [SegmentRecord(caption=reply)] if is_caption else []
    return record.model_copy(update={"questions": questions, "messages": messages, "segments": segments})


def _media_first(text: str) -> str:
    return f"{''.join(MARKS.findall(text))}\n{MARKS.sub('', text).strip()}".strip()


def _write(options: argparse.Namespace, found: dict[str, _Found], captions: _Captions | None, console: Console) -> None:
    records = [record for each in found.values() for record in each.records]
    if options.mix == "stage2b":
        known = {record.video: record for record in records if record.segments}
        records = [record.model_copy(update={"questions": [], "messages": []}) for record in known.values()]
    if not records:
        raise ValueError("No sample can be used, so nothing is written; see above for what is missing.")
    os.sync()  # images that were unpacked
    write_records(options.out, records)
    console.print(f"Written: {options.out}, {len(records)} records.")
    if captions is None and options.mix in ("choice", "open"):
        console.print("Without --captions: set train.targets=none in stage 3, so that the captioner writes them.")


def _table(found: dict[str, _Found], absent: list[str]) -> Table:
    table = Table("set", "samples", "questions", "media missing", "malformed", box=None, pad_edge=False)
    for name, each in found.items():
        asked = sum(len(record.questions) or len(record.messages) // 2 for record in each.records)
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
