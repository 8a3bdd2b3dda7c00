"""VideoLLaMA3: times between frames, and its own compression, which leaves out what does not change."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from langdc import compressors
from langdc.backbones import backbones
from langdc.model import VideoModel
from langdc.types import FeatureGrid, Frames
from tests import stock
from tests.backbones.test_stock import build, read, tokens_of
from tests.contract import grid

NAME = "video_llama_3"


def still(count: int = 6) -> Frames:
    """A video whose left half never changes, and whose last two frames are the same."""
    video = stock.clip(1, count=count)
    pixels = video.pixels.clone()
    pixels[:, :, :, :16] = pixels[:1, :, :, :16]
    pixels[-1] = pixels[-2]
    return Frames(pixels, video.seconds)


def test_an_uncompressed_video_loses_what_the_stock_processor_leaves_out() -> None:
    backbone, media = build(NAME), [still(), stock.clip(3, count=1), still(4)]
    inputs = stock.stock_inputs(backbone, NAME, media)
    left = inputs["video_compression_mask"].split([6 * 12, 4 * 12])
    assert [int(part.sum()) for part in left] == [12 + 4 * 6 + 1, 12 + 2 * 6 + 1]
    videos, tokens = tokens_of(backbone, media)
    assert [torch.equal(one.source, part.nonzero()[:, 0]) for one, part in zip(tokens[::2], left, strict=True)] == [
        1,
        1,
    ]
    assert len(tokens[1]) == 48 and not any(one.extra for one in tokens)
    prompt = backbone.prompt(stock.conversation(media), media=videos)
    ids = inputs["input_ids"][0]
    shown = torch.isin(ids, torch.tensor(backbone.tokenizer.convert_tokens_to_ids([*backbone.placeholders.values()])))
    assert torch.equal(ids[~shown], prompt.ids)
    assert torch.equal(shown, backbone.splice([prompt], [tokens])[0].video)
    torch.testing.assert_close(read(backbone, media).logits, stock.stock_logits(backbone, inputs), atol=1e-5, rtol=0)


def test_a_checkpoint_says_whether_anything_is_left_out(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(stock.folder(NAME), folder)
    file = next(file for file in folder.glob("*processor*.json") if "use_token_compression" in file.read_text())
    text = file.read_text()
    file.write_text(
        json.dumps(json.loads(text.replace('"use_token_compression": true', '"use_token_compression": false')))
    )
    backbone = backbones.build(NAME, source=str(folder))
    assert [len(one) for one in tokens_of(backbone, [still()])[1]] == [6 * 12]
    expected = stock.stock_logits(backbone, stock.stock_inputs(backbone, NAME, [still()]))
    torch.testing.assert_close(read(backbone, [still()]).logits, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("method", "variant"), [("evs", "released"), ("vidcom2", "vllm")])
def test_what_does_not_change_is_no_feature_that_a_compressor_compares(method: str, variant: str) -> None:
    """vLLM's rules compare what a language model adds to its layers beside the tokens; marks are not that."""
    video, squeeze = build(NAME).features_of([still()])[0], compressors.build(method, keep=0.5, variant=variant)
    bare = replace(video, projected=(FeatureGrid(video.projected[0].values),))
    assert torch.equal(squeeze.one(video).source, squeeze.one(bare).source)
    assert video.encoder["video"].extra and not squeeze.one(video).extra


@pytest.mark.parametrize("method", ["vidcom2", "uniform", "dycoke"])
def test_what_a_compressor_chose_is_not_thinned_out(method: str) -> None:
    backbone, squeeze = build(NAME), compressors.build(method, keep=0.5)
    video = backbone.features_of([still()])[0]
    chosen = squeeze.one(video)
    assert torch.equal(backbone.append_newline_tokens(chosen, video).values, chosen.values)


def test_gradients_of_a_thinned_video_are_finite() -> None:
    model, _ = grid.build(NAME, "identity")
    assert isinstance(model, VideoModel)
    batch = grid.batch_of(model, [still(), still(4), stock.clip(2)])
    history = grid.train(model, batch, 5, 1e-2)
    assert history[-1] < history[0]


def test_a_segment_has_the_time_of_its_first_frame() -> None:
    backbone, media = build(NAME), [stock.clip(1, count=5)]
    prompt = backbone.prompt(stock.conversation(media), media=backbone.features_of(media), segment_steps=2)
    assert "Time 0.0s:,Time 1.0s:,Time 2.0s:\n" in backbone.tokenizer.decode(prompt.ids)


@pytest.mark.parametrize("frames", [2, 8, 100])
def test_frames_that_were_made_small_while_they_were_read_stay_so(frames: int) -> None:
    """The stock rule enlarges frames to its least number of pixels, even where its most is below that."""
    backbone = build(NAME)
    backbone.video_processor.size = {"shortest_edge": 2048, "longest_edge": 16384}
    size = backbone.read_size(frames, 90, 120)
    whole, small = (backbone.patches_of(stock.clip(1, frames, *each))[1].tolist() for each in ((90, 120), size))
    assert whole == small == [[frames, size[0] // 4, size[1] // 4]]
