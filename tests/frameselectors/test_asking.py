"""From a question to the frames that are read for it, and what choosing them costs."""

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from langdc import VideoLM
from langdc.compressors.plain import Identity
from langdc.features import FeatureStore, read_spec
from langdc.frameselectors import build
from langdc.frameselectors.plain import Top
from langdc.types import Frames, FrameSpec
from langdc.video import read_frames
from tests import imagetext, stock, tiny
from tests.imagetext import redness

QUESTION = "what is red ?"


@pytest.fixture(scope="module")
def mp4(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return imagetext.scenes(tmp_path_factory.mktemp("clips") / "clip.mp4")


@pytest.fixture(scope="module")
def plain() -> VideoLM:
    return VideoLM.from_pretrained(stock.folder("qwen2_5_vl"), backbone={"frames": 4}, device="cpu")


def choosing(lm: VideoLM, scorer: Callable = redness, **settings: Any) -> VideoLM:
    return VideoLM(lm.model, frames=Top(scorer, **{"fps": 2.0, **settings}))


# ---- explicit times


def test_frames_nearest_to_given_times(mp4: Path) -> None:
    whole = read_frames(mp4)
    found = read_frames(mp4, times=[0.0, 0.3, 7.49, 7.51, 0.3, 99.0])
    assert found.seconds.tolist() == [0.0, 0.25, 7.5, 7.5, 0.25, 11.75]
    assert torch.equal(found.pixels, whole.pixels[[0, 1, 30, 30, 1, 47]])
    assert read_frames(mp4, times=[0.0], start=2.0, end=3.0).seconds.tolist() == [2.0]
    with pytest.raises(ValueError, match="times is 0"):
        read_frames(mp4, times=[])


def test_times_of_frames_read_before_are_those_frames(tmp_path: Path) -> None:
    path = stock.mp4(tmp_path, count=50, fps=30)  # whose times are no sums of powers of two
    whole = read_frames(path)
    again = read_spec(FrameSpec(path, 1, 50, times=tuple(whole.seconds.tolist())))
    assert torch.equal(again.pixels, whole.pixels) and torch.equal(again.seconds, whole.seconds)


def test_a_store_tells_chosen_frames_from_others(mp4: Path) -> None:
    store, spec = FeatureStore(lambda videos: [], "x"), FrameSpec(mp4, 1, 2)
    chosen = [spec, replace(spec, times=(1.0, 2.0)), replace(spec, times=(1.0, 3.0))]
    assert len({store.key(one) for one in chosen}) == 3


# ---- which frames are read


@pytest.mark.parametrize(("question", "seconds"), [("what is red ?", [7, 8]), ("what is green ?", [0, 1, 9, 10, 11])])
def test_the_scene_of_the_question_is_read(plain: VideoLM, mp4: Path, question: str, seconds: list[int]) -> None:
    video = choosing(plain).open(mp4, question=question)
    assert len(video.times) == 4 and {int(time) for time in video.times.tolist()} <= {*seconds}
    spec = replace(plain.frame_spec(mp4), times=tuple(video.times.tolist()))
    assert video.frames is not None and torch.equal(video.frames.pixels, read_spec(spec).pixels)
    assert torch.equal(video.encoder["video"].values, plain.model.backbone.encode([read_spec(spec)])[0]["video"].values)


def test_frames_are_seen_small_at_the_rate_and_no_more_than_asked(plain: VideoLM, mp4: Path) -> None:
    seen: list[Frames] = []

    def scorer(frames: Frames, question: str) -> torch.Tensor:
        seen.append(frames)
        return redness(frames, question)

    for settings in ({}, {"fps": 1.0}, {"most": 6}, {"fps": 30.0}):
        choosing(plain, scorer, **settings).open(mp4, question=QUESTION)
    assert [len(frames) for frames in seen] == [24, 12, 6, 48]  # of the last the video has no more
    assert all(frames.pixels.shape[2:] == (224, 299) for frames in seen)
    assert torch.allclose(seen[1].seconds, torch.arange(12) + 0.5)
    choosing(plain, scorer).open(mp4, start=6.0, end=10.0, question=QUESTION)
    assert len(seen[-1]) == 8 and seen[-1].seconds.min() >= 6 and seen[-1].seconds.max() < 10


def test_nothing_is_chosen_where_all_frames_are_read(plain: VideoLM, mp4: Path, tmp_path: Path) -> None:
    def scorer(frames: Frames, question: str) -> torch.Tensor:
        raise AssertionError("there is nothing to choose")

    whole = plain.open(mp4)
    assert torch.equal(choosing(plain, scorer, most=4).open(mp4, question=QUESTION).times, whole.times)
    Image.new("RGB", (32, 24), "red").save(tmp_path / "one.png")
    assert len(choosing(plain, scorer).open(tmp_path / "one.png").times) == 1


def test_a_choice_that_settings_leave_nothing_of_is_said_once(
    plain: VideoLM, mp4: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    lm, few = choosing(plain, most=4), stock.mp4(tmp_path, count=4, fps=4)
    with caplog.at_level(logging.WARNING, "langdc"):
        lm.open(few, question=QUESTION)  # which has no more
        choosing(plain).open(mp4, question=QUESTION)
        assert not caplog.records
        for _ in range(2):
            lm.open(mp4, question=QUESTION)
        choosing(plain, fps=0.25).open(mp4, question=QUESTION)
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 2 and "Top looks at 4 frames" in said[0] and "(fps=2.0, most=4), and 4 are read" in said[0]
    assert "Top looks at 3 frames" in said[1] and "(fps=0.25, most=1024)" in said[1]


def test_uniform_reads_what_is_read_without_a_selector(plain: VideoLM, mp4: Path) -> None:
    control = VideoLM.from_pretrained(plain.model.backbone.source, backbone={"frames": 4}, frames="uniform")
    video, whole = control.open(mp4), plain.open(mp4)
    assert torch.equal(video.encoder["video"].values, whole.encoder["video"].values)
    assert "select" not in control.ask(mp4, QUESTION, max_new_tokens=1).flops


@pytest.mark.parametrize("places", [[], [1, 1], [3, 2], [0, 1, 2, 3, 4], [0, 24], [-1, 2]])
def test_what_selectors_must_not_choose(plain: VideoLM, mp4: Path, places: list[int]) -> None:
    lm = choosing(plain)
    lm.frames.select = lambda *_: torch.tensor(places, dtype=torch.long)
    with pytest.raises(ValueError, match="it must choose 1 to 4 of them, in ascending order"):
        lm.open(mp4, question=QUESTION)


def test_a_question_is_needed_and_segments_are_refused(plain: VideoLM, mp4: Path) -> None:
    with pytest.raises(ValueError, match=r"give it: open\(path, question="):
        choosing(plain).open(mp4)
    with pytest.raises(ValueError, match="The question is empty"):
        choosing(plain).open(mp4, question=" ")
    for name in tiny.COMPRESSORS:
        with pytest.raises(ValueError, match="VideoGPTPlus reads equal parts of a video"):
            choosing(VideoLM(tiny.model(name)))

    class Writer(Identity):
        def text(self, ids: torch.Tensor) -> str:
            return "a segment"

    VideoLM(plain.model, Writer(), frames=build("uniform"))
    with pytest.raises(ValueError, match="Writer reads equal parts of a video"):
        VideoLM(plain.model, Writer(), frames=Top(redness))


# ---- to an answer


@pytest.mark.parametrize("name", ["aks", "top"])
def test_an_image_text_model_chooses_and_is_charged(name: str, plain: VideoLM, mp4: Path, tmp_path: Path) -> None:
    scorer = {"model": str(imagetext.folder(tmp_path))}
    folder = plain.model.backbone.source
    lm = VideoLM.from_pretrained(
        folder,
        {"name": "vidcom2", "keep": 0.5},
        backbone={"frames": 4},
        device="cpu",
        frames={"name": name, "scorer": scorer},
    )
    answer, without = lm.ask(mp4, QUESTION, max_new_tokens=2), plain.ask(mp4, QUESTION, max_new_tokens=2)
    assert answer.tokens_before == without.tokens
    assert answer.seconds["select"] > 0 and set(answer.seconds) - set(without.seconds) == {"select"}
    # the image tower's layers alone, of 12 frames with 4 patches and a class token each
    layers = 12 * 5 * 2 * 2 * (4 * 32 * 32 + 2 * 32 * 48)
    assert layers < answer.flops["select"] < 1.6 * layers
    assert set(answer.flops) - set(without.flops) == {"select"} and answer.flops["encode"] == without.flops["encode"]


def test_another_model_takes_over_frames_and_their_cost(plain: VideoLM, mp4: Path) -> None:
    video = choosing(plain).open(mp4, question=QUESTION)
    other = plain.open(mp4, same=video)
    assert torch.equal(other.times, video.times) and other.seconds["select"] == video.seconds["select"]
    assert set(other.ask(QUESTION, max_new_tokens=1).flops) >= {"select", "encode"}
    for opened in (video, other):
        with pytest.raises(ValueError, match=r"were chosen for .*; open it again for 'how many [?]'"):
            opened.ask("how many ?")
