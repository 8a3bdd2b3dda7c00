"""Another decoder than PyAV is chosen by name only, says what it lacks, and gives the frames of the index or none."""

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from langdc import decoders
from langdc.decoders import decoder_trouble
from langdc.pipeline import VideoLM
from langdc.video import read_frames
from tests import stock, tiny
from tests.test_video import _encode, _numbered, _numbers


@pytest.fixture(scope="module")
def numbered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _encode(tmp_path_factory.mktemp("numbered") / "n.mp4", _numbered(40), g="8", bf="3", crf="5")


def test_without_other_decoders_pyav_reads(numbered: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoders.importlib.util, "find_spec", lambda name: None)
    assert _numbers(read_frames(numbered, frames=2).pixels) == [10, 30]
    for name in ("decord", "torchcodec"):
        with pytest.raises(ValueError, match=f'{name} is not installed.*pip install {name}.*decoder="pyav"'):
            read_frames(numbered, frames=2, decoder=name)
    assert decoder_trouble("pyav") is None


class _StandIn:
    """A torchcodec that gives the frame `late` frames behind the one that is asked for."""

    late = 0

    def __init__(self, source: str | bytes, dimension_order: str = "NCHW", num_ffmpeg_threads: int = 1) -> None:
        if isinstance(source, bytes):
            raise RuntimeError("Failed to open input buffer")
        self.frames, self.order = read_frames(source), dimension_order

    def __len__(self) -> int:
        return len(self.frames)

    def get_frame_at(self, number: int) -> SimpleNamespace:
        number += self.late
        assert self.order == "NHWC"
        pixels = self.frames.pixels[number].permute(1, 2, 0)
        return SimpleNamespace(data=pixels, pts_seconds=self.frames.seconds[number].item())


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> type[_StandIn]:
    module: Any = ModuleType("torchcodec.decoders")
    module.VideoDecoder = type("VideoDecoder", (_StandIn,), {})
    monkeypatch.setitem(sys.modules, "torchcodec.decoders", module)
    monkeypatch.setattr(decoders.importlib.util, "find_spec", lambda name: name)
    return module.VideoDecoder


def test_frames_of_another_decoder_are_checked_by_their_times(numbered: Path, stand_in: Any, caplog: Any) -> None:
    expected = read_frames(numbered, frames=4)
    found = read_frames(numbered, frames=4, decoder="torchcodec")
    assert torch.equal(found.pixels, expected.pixels) and torch.equal(found.seconds, expected.seconds)
    assert not caplog.records
    stand_in.late = 1
    found = read_frames(numbered, frames=4, decoder="torchcodec")
    assert torch.equal(found.pixels, expected.pixels) and torch.equal(found.seconds, expected.seconds)
    assert (
        "n.mp4: read by PyAV in place of torchcodec: it gives the frame at 0.750 s for the one at 0.625 s"
        in caplog.text
    )
    stand_in.__len__ = lambda self: 39
    assert torch.equal(read_frames(numbered, frames=4, decoder="torchcodec").pixels, expected.pixels)
    assert "it sees 39 frames, the file holds 40" in caplog.text


def test_pictures_of_another_decoder_are_compared(numbered: Path, stand_in: Any, caplog: Any) -> None:
    """The last one, too: a decoder may say the time that was asked for, and give what it found elsewhere."""
    expected = read_frames(numbered, frames=4)
    get = stand_in.get_frame_at

    def stuck(self: _StandIn, number: int) -> SimpleNamespace:
        return SimpleNamespace(data=get(self, min(number, 20)).data, pts_seconds=number / 8)

    stand_in.get_frame_at = stuck
    found = read_frames(numbered, frames=4, decoder="torchcodec")
    assert torch.equal(found.pixels[-1], expected.pixels[-1])
    assert "it gives another picture at 4.375 s" in caplog.text


def test_a_torchcodec_that_cannot_be_loaded_says_what_to_install(numbered: Path, stand_in: Any) -> None:
    assert decoder_trouble("torchcodec") is None
    for error in (RuntimeError("Could not load libtorchcodec. Likely causes: ..."), OSError("libavutil.so.60")):

        def broken(*_: Any, error: Exception = error, **__: Any) -> None:
            raise error

        stand_in.__init__ = broken
        with pytest.raises(ValueError, match=r'needs FFmpeg\'s shared libraries.*"apt install ffmpeg".*decoder="pyav"'):
            read_frames(numbered, decoder="torchcodec")


def test_a_backbone_names_the_decoder(tmp_path: Path, sample_video: Path) -> None:
    for name in ("llava_video", "qwen2_vl"):
        lm = VideoLM.from_pretrained(stock.folder(name), backbone={"frames": 4, "decoder": "decord"})
        assert lm.frame_spec(sample_video).decoder == "decord"
    model = tiny.model("pool", backbone=tiny.backbone_settings(decoder="torchcodec"))
    assert VideoLM(model).frame_spec(sample_video).decoder == "torchcodec"
    with pytest.raises(ValueError, match=r"Unknown decoder 'decrod'\. Did you mean 'decord'"):
        VideoLM.from_pretrained(stock.folder("qwen2_vl"), backbone={"frames": 4, "decoder": "decrod"})
