"""InternVL: numbered frames of one tile, images of several, an encoder with a class token."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForImageTextToText

from langdc import compressors
from langdc.backbones import backbones
from langdc.types import Frames
from tests import stock
from tests.backbones.test_stock import build, read

NEED = frozenset({"projected", "saliency"})


def thin(number: int, height: int, width: int) -> Frames:
    """A picture that is cut into tiles."""
    return stock.clip(number, count=1, height=height, width=width)


@pytest.mark.parametrize(("height", "width", "tiles"), [(20, 90, 5), (90, 30, 4), (64, 64, 5), (24, 24, 1)])
def test_tiles_of_an_image_are_those_of_the_stock_processor(height: int, width: int, tiles: int) -> None:
    backbone, media = build("internvl"), [stock.clip(1, count=2), thin(1, height, width)]
    grid = backbone.features_of(media)[1].projected[0]
    assert grid.values.shape == (1, tiles * 4, 4, 64)
    expected = stock.stock_logits(backbone, stock.stock_inputs(backbone, "internvl", media))
    torch.testing.assert_close(read(backbone, media).logits, expected, atol=1e-5, rtol=0)


def test_the_text_model_of_internvl3_is_qwen2(tmp_path: Path) -> None:
    folder = tmp_path / "internvl3"
    shutil.copytree(stock.folder("internvl"), folder)
    settings = json.loads((folder / "config.json").read_text())
    settings["text_config"] = {**settings["text_config"], "model_type": "qwen2", "architectures": None}
    (folder / "config.json").write_text(json.dumps(settings))
    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_config(AutoConfig.from_pretrained(folder))
    model.save_pretrained(folder)
    backbone = backbones.build("internvl", source=str(folder))
    assert type(backbone.text_model).__name__ == "Qwen2Model"
    media = [stock.clip(4, count=4), thin(5, 20, 90)]
    expected = stock.stock_logits(backbone, stock.stock_inputs(backbone, "internvl", media))
    torch.testing.assert_close(read(backbone, media).logits, expected, atol=1e-5, rtol=0)


def test_a_segment_has_the_number_of_its_first_frame() -> None:
    backbone = build("internvl")
    videos = backbone.features_of([stock.clip(1, count=5)])
    prompt = backbone.prompt(stock.conversation([stock.clip(1, count=5)]), media=videos, segment_steps=2)
    text = backbone.tokenizer.decode(prompt.ids)
    assert "Frame1: <img></img>\nFrame3: <img></img>\nFrame5: <img></img>\n" in text and "Frame2" not in text
    tokens = compressors.build("random", keep=0.5, frames_per_segment=2).one(videos[0])
    spliced = backbone.splice([prompt], [[tokens]])[0]
    assert torch.equal(spliced.embeds[spliced.video], tokens.values)


def test_saliency_is_what_patches_get_of_the_encoders_attention() -> None:
    backbone, media = build("internvl"), [stock.clip(1, count=3), thin(1, 20, 90)]
    whole = AutoModelForImageTextToText.from_pretrained(stock.folder("internvl"), attn_implementation="eager")
    with torch.no_grad():
        for video, found in zip(media, backbone.features_of(media, NEED), strict=True):
            weights = whole.model.vision_tower(backbone._pixels(video), output_attentions=True).attentions[-1]
            received = weights.mean((1, 2))[:, 1:].unflatten(1, (4, 2, 4, 2)).mean((2, 4))
            grid = found.projected[0]
            torch.testing.assert_close(grid.saliency, received.reshape(grid.values.shape[:3]), atol=1e-6, rtol=1e-5)
            assert backbone.features_of([video])[0].projected[0].saliency is None
