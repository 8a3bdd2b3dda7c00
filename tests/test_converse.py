from pathlib import Path

import numpy as np
import pytest

from langdc.backbones.chat import conversation
from langdc.pipeline import VideoLM
from langdc.video import write_video
from tests import stock

QUESTION = "what is in the video ?"


@pytest.fixture(scope="module")
def lm() -> VideoLM:
    return VideoLM.from_pretrained(stock.folder("qwen2_5_vl"), {"name": "vidcom2", "keep": 0.5}, backbone={"frames": 8})


@pytest.fixture(scope="module")
def videos(lm: VideoLM, tmp_path_factory: pytest.TempPathFactory) -> list:
    folder, opened = tmp_path_factory.mktemp("videos"), []
    for number in range(2):
        pixels = np.random.default_rng(number).integers(0, 255, (8, 24, 32, 3), dtype=np.uint8)
        write_video(folder / f"{number}.mp4", pixels, 2)
        opened.append(lm.open(folder / f"{number}.mp4"))
    return opened


def test_messages_about_one_video_or_none_are_answered_as_questions_are(lm: VideoLM, videos: list, tmp_path: Path):
    one = lm.converse(conversation(QUESTION), [videos[0]], max_new_tokens=8)
    assert one.text == videos[0].ask(QUESTION, max_new_tokens=8).text
    none = lm.converse(conversation(QUESTION, videos=0), [], max_new_tokens=8)
    assert none.text == lm.ask(None, QUESTION, max_new_tokens=8).text


def test_every_video_of_the_messages_is_read_in_its_place(lm: VideoLM, videos: list):
    messages = conversation(QUESTION)
    messages[0]["content"].insert(0, {"type": "video"})
    both, turned = (lm.converse(messages, order, max_new_tokens=1) for order in (videos, videos[::-1]))
    assert both.kv_bytes is not None and both.kv_bytes == turned.kv_bytes
    one = lm.converse(conversation(QUESTION), videos[:1], max_new_tokens=1)
    assert one.kv_bytes is not None and both.kv_bytes > one.kv_bytes
    prompt = lm.model.backbone.prompt(messages, media=[video.features for video in videos])
    logits = [lm.read(prompt, order).logits for order in (videos, videos[::-1])]
    assert not logits[0].allclose(logits[1], atol=1e-4)


def test_a_number_of_videos_other_than_the_messages_show_is_refused(lm: VideoLM, videos: list):
    with pytest.raises(ValueError, match="show 1 videos and images, 2 were given"):
        lm.converse(conversation(QUESTION), videos)
