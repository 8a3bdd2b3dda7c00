"""Videos are decoded and encoded once for all rows, as long as their encoder outputs fit into memory."""

from pathlib import Path
from threading import Event
from typing import Any

import pytest
import torch

from langdc import jsonl
from langdc.data.records import QuestionRecord, Record
from langdc.evaluate import videos
from langdc.evaluate.folder import LineFile
from langdc.evaluate.videos import VideoCache
from langdc.pipeline import VideoLM
from langdc.timing import StageTimer
from langdc.types import Frames, FrameSpec
from tests import stock

FILM = QuestionRecord(kind="what", question="what is it ?", answer="it")


@pytest.fixture(scope="module")
def mp4(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return stock.mp4(tmp_path_factory.mktemp("clips"), count=8, fps=4)


@pytest.fixture(scope="module")
def lm() -> VideoLM:
    return VideoLM.from_pretrained(stock.folder("llava_onevision"), backbone={"frames": 4})


def record(number: int) -> Record:
    return Record(id=f"v{number}", video=f"v{number}.mp4", questions=[FILM])


def salient(lm: VideoLM) -> VideoLM:
    other = VideoLM.from_pretrained(stock.folder("llava_onevision"), {"name": "visionzip", "keep": 0.5})
    return VideoLM(lm.model, other.compressor)


def test_rows_take_over_what_was_seen(lm: VideoLM, mp4: Path, tmp_path: Path) -> None:
    library = VideoCache(LineFile(tmp_path / "encoding.jsonl", alone=True))
    need, here = salient(lm).compressor.needs, VideoCache.key_of(lm)
    with StageTimer() as timer:
        plain = library.open(lm, here, record(0), mp4, need)
        other = library.open(salient(lm), here, record(0), mp4, need)
        again = library.open(lm, here, record(0), mp4, need)
    assert (library.videos, library.decoded) == (1, 1)
    assert timer.seconds["decode"] == plain.seconds["decode"]  # nothing was decoded for the others
    assert other.encoder["video"].saliency is not None and plain.encoder["video"].saliency is None
    assert other.encoder["video"].values is plain.encoder["video"].values is again.encoder["video"].values
    assert set(other.seconds) - set(plain.seconds) == {"saliency"}  # charged to the row that has use for it
    assert {**plain.seconds, "saliency": other.seconds["saliency"]} == other.seconds


def test_without_notice_a_row_with_other_needs_encodes_again(lm: VideoLM, mp4: Path, tmp_path: Path) -> None:
    library = VideoCache(LineFile(tmp_path / "encoding.jsonl", alone=True))
    first = library.open(lm, VideoCache.key_of(lm), record(0), mp4)
    later = library.open(salient(lm), VideoCache.key_of(lm), record(0), mp4)
    assert library.decoded == 2 and later.encoder["video"].saliency is not None
    assert later.seconds["encode"] == first.seconds["encode"]  # every row is charged the same


def test_what_was_unused_for_longest_is_dropped(lm: VideoLM, mp4: Path, tmp_path: Path) -> None:
    one = library_bytes(lm, mp4, tmp_path)
    library = VideoCache(LineFile(tmp_path / "encoding.jsonl", alone=True), memory=2.5 * one)
    here = VideoCache.key_of(lm)
    for number in (0, 1, 0, 2):
        library.open(lm, here, record(number), mp4)
    assert library.decoded == 3
    library.open(lm, here, record(0), mp4)
    assert library.decoded == 3
    library.open(lm, here, record(1), mp4)  # had to go for the third
    assert (library.videos, library.decoded) == (3, 4)
    assert len(jsonl.read(tmp_path / "encoding.jsonl")) == 3


def library_bytes(lm: VideoLM, mp4: Path, folder: Path) -> int:
    values = lm.open(mp4).encoder["video"].values
    return values.numel() * values.element_size()


def test_a_batch_always_stays(lm: VideoLM, mp4: Path, tmp_path: Path) -> None:
    library = VideoCache(LineFile(tmp_path / "encoding.jsonl", alone=True), memory=1, min_videos=3)
    here = VideoCache.key_of(lm)
    for _ in range(3):
        for number in range(3):
            library.open(lm, here, record(number), mp4)
    assert library.decoded == 3


def test_an_unreadable_video_is_tried_once(lm: VideoLM, tmp_path: Path) -> None:
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    library = VideoCache(LineFile(tmp_path / "encoding.jsonl", alone=True))
    for _ in range(3):
        with pytest.raises(ValueError, match=r"broken\.mp4"):
            library.open(lm, VideoCache.key_of(lm), record(0), tmp_path / "broken.mp4")
    assert library.decoded == 1


def test_the_next_videos_are_decoded_while_one_is_encoded(
    lm: VideoLM, mp4: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Encoding the first waits until those behind it were decoded, which it could not if they were decoded later."""
    begun = {number: Event() for number in range(7)}
    here, encode, read = VideoCache.key_of(lm), VideoLM._encoded, videos.read_spec
    expected = [grid.values for grid in lm.open(mp4).encoder.values()]

    def reading(spec: FrameSpec) -> Frames:
        begun[int(spec.path.stem[1:])].set()
        return read(spec)

    def encoding(self: VideoLM, *args: Any) -> Any:
        assert begun[4].wait(60) and not begun[6].is_set()
        return encode(self, *args)

    for number in (0, 1, 2, 4, 5, 6):
        (tmp_path / f"v{number}.mp4").write_bytes(b"no video" if number == 1 else mp4.read_bytes())
    monkeypatch.setattr(videos, "read_spec", reading)
    library, records = VideoCache(LineFile(tmp_path / "encoding.jsonl", alone=True)), [record(n) for n in range(7)]

    def path_of(one: Record) -> Path:
        if one.id == "v3":
            raise ValueError("it names no video")
        return tmp_path / f"{one.id}.mp4"

    library.decode_ahead(lm, here, records, path_of)
    monkeypatch.setattr(VideoLM, "_encoded", encoding)
    first = library.open(lm, here, records[0], path_of(records[0]))
    monkeypatch.setattr(VideoLM, "_encoded", encode)
    with pytest.raises(ValueError, match=r"v1\.mp4: cannot be read"):
        library.open(lm, here, records[1], path_of(records[1]))
    others = [library.open(lm, here, records[number], path_of(records[number])) for number in (4, 2, 5, 6)]
    for video in (first, *others):
        assert all(map(torch.equal, [grid.values for grid in video.encoder.values()], expected))
        assert video.seconds["decode"] > 0
    assert (library.decoded, library._decoding) == (6, {})


@pytest.mark.parametrize(
    ("name", "backbone", "other"),
    [
        ("qwen2_vl", {"frames": 4}, {"frames": 6}),
        ("qwen2_vl", {"frames": 4}, {"frames": 4, "fps": 2.0}),
        ("qwen2_vl", {"frames": 4}, {"frames": 4, "pixels": [64, 1024]}),
        ("qwen2_vl", {"frames": 4, "decoder": "pyav"}, {"frames": 4, "decoder": "torchcodec"}),
        ("llava_video", {"frames": 4}, {"frames": 4, "decoder": "decord"}),
    ],
)
def test_other_sampling_is_another_sight(name: str, backbone: dict[str, Any], other: dict[str, Any]) -> None:
    one, same, changed = (VideoLM.from_pretrained(stock.folder(name), backbone=h) for h in (backbone, backbone, other))
    assert VideoCache.key_of(one) == VideoCache.key_of(same) != VideoCache.key_of(changed)
