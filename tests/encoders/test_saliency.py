"""What an encoder attends to: the numbers of its own attention, told on request only, and charged."""

import pytest
import torch
from transformers import AutoModelForImageTextToText

from langdc import devices
from langdc.backbones import backbones
from langdc.compressors import compressors
from langdc.encoders.saliency import attention_received
from langdc.flops import encoder_flops
from langdc.pipeline import VideoLM
from langdc.video import write_video
from tests import stock

NEED = frozenset({"projected", "saliency"})


def llava(name: str = "llava_onevision", **settings):
    return backbones.build(name, source=stock.folder(name), **settings)


@pytest.fixture(scope="module")
def video():
    return stock.clip(1, count=5)


@pytest.mark.parametrize("block_bytes", [1, 1 << 22])
def test_equal_to_the_weights_of_the_encoder(monkeypatch, video, block_bytes: int) -> None:
    monkeypatch.setitem(devices._BLOCK_BYTES, "cpu", block_bytes)
    whole = AutoModelForImageTextToText.from_pretrained(stock.folder("llava_onevision"), attn_implementation="eager")
    tower = whole.model.vision_tower
    pixels = llava().video_processor(videos=[video.pixels], do_sample_frames=False, return_tensors="pt")
    with torch.no_grad():
        found = tower(pixels["pixel_values_videos"][0], output_hidden_states=True, output_attentions=True)
        for layer, weights in enumerate(found.attentions):
            mine = attention_received(tower.encoder.layers[layer], found.hidden_states[layer])
            torch.testing.assert_close(mine, weights.mean((1, 2)), atol=1e-6, rtol=1e-5)
            torch.testing.assert_close(mine.sum(1), torch.ones(len(mine)), atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["llava_onevision", "llava_video"])
def test_told_on_request_and_pooled_as_the_features_are(name: str, video) -> None:
    backbone = llava(name)
    silent, telling = (encoder_flops(backbone, backbone.encode([video], need)[0]) for need in (frozenset(), NEED))
    wide, patches = backbone.vision.config.hidden_size, backbone.patch_side**2
    assert telling - silent == len(video) * 2 * patches * wide * (2 * wide + patches)


@pytest.mark.parametrize("name", ["visionzip", "fastvid", "holitom_outer"])
def test_methods_that_go_by_salience(name: str, video) -> None:
    method = compressors.build(name, keep=0.5)
    assert "saliency" in method.needs
    assert "saliency" not in compressors.build(name, keep=0.5, variant="released").needs


def test_a_model_asks_for_what_its_compressor_needs(tmp_path, video) -> None:
    path = tmp_path / "clip.mp4"
    write_video(path, video.pixels.permute(0, 2, 3, 1), fps=5)
    folder = stock.folder("llava_onevision")
    by_salience = VideoLM.from_pretrained(folder, {"name": "visionzip", "keep": 0.5}, backbone={"frames": 4})
    opened = by_salience.open(path)
    assert opened.features.projected[0].saliency is not None
    by_length = VideoLM(by_salience.model, compressors.build("visionzip", keep=0.5, variant="released"))
    assert by_length.open(path).features.projected[0].saliency is None
    again = by_salience.open(path, same=by_length.open(path))
    assert torch.equal(again.features.projected[0].saliency, opened.features.projected[0].saliency)
    without_frames = by_length.open(path)
    without_frames.frames = None
    with pytest.raises(ValueError, match=r"VisionZip needs the encoder's attention.*Open it again"):
        by_salience.compress([(by_salience.open(path, same=without_frames), None)])


def test_a_backbone_that_cannot_tell_leaves_it_to_the_length(video) -> None:
    backbone = llava("qwen2_vl")
    assert not backbone.has_saliency
    assert backbone.features_of([video], NEED)[0].projected[0].saliency is None
