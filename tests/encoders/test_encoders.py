"""Encoders see real frames the way their definitions say, whatever stands beside them in the batch."""

import json

import pytest
import torch
from safetensors.torch import save_file
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModel, ViTConfig, ViTModel

from langdc import devices, hashing
from langdc.encoders import encoders
from langdc.encoders.base import Encoder
from langdc.encoders.image import CLIP_MEAN, CLIP_STD
from langdc.encoders.internvideo2 import InternVideo2, InternVideo2Config
from langdc.hashing import module_hash
from tests import tiny

SOURCES = {"image": tiny.random_weights(tiny.CLIP), "internvideo2": tiny.random_weights(tiny.INTERNVIDEO2)}


def build(name: str, **settings) -> Encoder:
    torch.manual_seed(0)
    return encoders.build(name, **{"source": SOURCES[name], **settings}).eval()


@pytest.mark.parametrize("name", SOURCES)
def test_a_grid_per_video_whatever_else_is_in_the_batch(name: str) -> None:
    encoder = build(name)
    videos = [tiny.frames(0), tiny.frames(1, count=1), tiny.frames(2, count=8, size=24), tiny.frames(3, count=1)]
    together = encoder(videos)
    side, width = (6, 24) if name == "image" else (4, 32)
    assert (encoder.side, encoder.width) == (side, width)
    for video, grid in zip(videos, together, strict=True):
        assert grid.values.shape == (len(video), side, side, width)
        torch.testing.assert_close(grid.values, encoder([video])[0].values, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(together[1].values, together[3].values, atol=1e-3)


def test_clip_stops_before_the_blocks_that_are_not_read() -> None:
    encoder = build("image")
    pixels = torch.randn(2, 3, 24, 24)
    expected = encoder.model(pixel_values=pixels, output_hidden_states=True).hidden_states
    for layer in (-4, -3, -2, -1, 0, 1, 2, 3):
        encoder.layer = layer
        found = encoder.run(pixels, [2]).flatten(1, 2)
        torch.testing.assert_close(found, expected[layer][:, 1:], atol=1e-6, rtol=1e-6)


def test_any_vision_model_of_transformers(tmp_path) -> None:
    torch.manual_seed(1)
    sizes = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
    ViTModel(ViTConfig(**sizes, image_size=24, patch_size=4), add_pooling_layer=False).save_pretrained(tmp_path)
    encoder = build("image", source=str(tmp_path), layer=1)
    pixels = torch.randn(2, 3, 24, 24)
    expected = encoder.model(pixel_values=pixels, output_hidden_states=True).hidden_states[1]
    assert torch.equal(encoder.run(pixels, [2]).flatten(1, 2), expected[:, 1:])


def test_a_saved_clip_with_its_own_statistics(tmp_path) -> None:
    sizes = {key: value for key, value in tiny.CLIP.items() if key != "model_type"}
    model = CLIPVisionModel(CLIPVisionConfig(**sizes))
    model.save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0.5] * 3, "image_std": [0.25] * 3}))
    encoder = build("image", source=str(tmp_path))
    for name, tensor in model.state_dict().items():
        assert torch.equal(encoder.model.state_dict()[name], tensor)
    black = torch.zeros(1, 3, 24, 24, dtype=torch.uint8)
    assert encoder.prepare(black).unique().tolist() == [-2.0]


def test_frames_are_prepared_as_clip_prepares_them() -> None:
    encoder = build("image")
    ramp = torch.linspace(20, 230, 31)  # noise would overshoot, and the processor clips between its two passes
    pixels = (ramp[:, None] * 0.5 + ramp.flip(0) * 0.4).expand(2, 3, 31, 31).to(torch.uint8)
    processor = CLIPImageProcessor(
        size={"height": 24, "width": 24}, do_center_crop=False, image_mean=CLIP_MEAN, image_std=CLIP_STD
    )
    expected = torch.as_tensor(processor(list(pixels), return_tensors="pt")["pixel_values"])
    # the processor rounds to whole levels after resizing: half a level, over the smallest deviation
    torch.testing.assert_close(encoder.prepare(pixels), expected, atol=1.01 / 255 / min(CLIP_STD), rtol=0)
    exact = tiny.frames(5, count=2, size=24).pixels
    found = encoder.prepare(exact) * torch.tensor(CLIP_STD).view(3, 1, 1) + torch.tensor(CLIP_MEAN).view(3, 1, 1)
    torch.testing.assert_close(found * 255, exact.float(), atol=1e-3, rtol=0)


def test_internvideo2_mixes_the_frames_of_a_clip_and_no_others() -> None:
    encoder = build("internvideo2")
    for block in encoder.model.blocks:  # at its initial 1e-5 a block hardly changes anything
        torch.nn.init.ones_(block.ls1.gamma)
    video = tiny.frames(0, count=8, size=16)
    before = encoder([video])[0].values
    video.pixels[5] = 0
    after = encoder([video])[0].values
    assert torch.equal(before[:4], after[:4])
    assert all(not torch.equal(before[frame], after[frame]) for frame in (4, 5, 6, 7))


def test_internvideo2_from_a_directory(tmp_path) -> None:
    model = build("internvideo2").model
    (tmp_path / "config.json").write_text(json.dumps(tiny.INTERNVIDEO2))
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    torch.manual_seed(9)
    found = encoders.build("internvideo2", source=str(tmp_path)).model.state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in model.state_dict().items())


def test_internvideo2_skips_its_last_block_and_random_weights_tell_places_apart() -> None:
    encoder = build("internvideo2")
    pixels = torch.randn(1, 4, 3, 16, 16)
    before = encoder.model(pixels)
    torch.nn.init.zeros_(encoder.model.blocks[-1].mlp.fc1.weight)
    torch.nn.init.ones_(encoder.model.blocks[-1].ls2.gamma)
    assert torch.equal(encoder.model(pixels), before)
    assert encoder.model.pos_embed.std() > 0.01


@pytest.mark.parametrize("count", [2, 6])
def test_frames_that_do_not_divide_into_clips(count: int) -> None:
    with pytest.raises(ValueError, match=rf"\[{count}\] frames do not divide into clips of 4"):
        build("internvideo2")([tiny.frames(0, count=count)])
    with pytest.raises(ValueError, match="clips of 3 frames; this model takes 4, or 1"):
        InternVideo2(InternVideo2Config(**tiny.INTERNVIDEO2))(torch.randn(1, 3, 3, 16, 16))


def test_sources_that_do_not_exist() -> None:
    with pytest.raises(ValueError, match="no checkpoint directory 'nowhere'"):
        build("image", source="nowhere")
    with pytest.raises(ValueError, match="no sample weights 'resnet'"):
        build("image", source="sample:resnet")
    with pytest.raises(ValueError, match="init"):
        build("internvideo2", source={"config": tiny.INTERNVIDEO2, "init": "zeros"})


@pytest.mark.parametrize("trained", [False, True])
def test_gradients_flow_through_encoders_that_are_trained(trained: bool) -> None:
    for name in SOURCES:
        encoder = build(name).requires_grad_(trained)
        assert encoder([tiny.frames(0, count=4)])[0].values.requires_grad is trained


def test_what_an_encoder_is_known_by_is_its_file_and_its_type(tmp_path, monkeypatch) -> None:
    """Also where the hash of its weights is remembered."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(hashing, "SMALL_BYTES", 0)
    (tmp_path / "config.json").write_text(json.dumps(tiny.INTERNVIDEO2))
    drawn = build("internvideo2").model.state_dict()
    save_file(drawn, tmp_path / "model.safetensors")
    encoder = build("internvideo2", source=str(tmp_path))
    first = module_hash(encoder.requires_grad_(False))
    with devices.making(None, torch.bfloat16):
        half = build("internvideo2", source=str(tmp_path)).requires_grad_(False)
    assert {weight.dtype for weight in half.parameters()} == {torch.bfloat16} and half.mean.dtype == torch.float32
    assert module_hash(half) != first
    with monkeypatch.context() as unread:
        unread.setattr(hashing, "tensor_hash", lambda *_: pytest.fail("hashed again"))
        assert module_hash(build("internvideo2", source=str(tmp_path)).requires_grad_(False)) == first
    save_file({name: 2 * tensor for name, tensor in drawn.items()}, tmp_path / "model.safetensors")
    assert module_hash(build("internvideo2", source=str(tmp_path)).requires_grad_(False)) != first


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_norms_and_gains_of_internvideo2_are_exactly_those_of_the_published_code(dtype: torch.dtype) -> None:
    """In its input's type, whatever that of the weights is; the gain by way of float32."""
    torch.manual_seed(0)
    block = InternVideo2(InternVideo2Config(**tiny.INTERNVIDEO2)).blocks[0]
    values = torch.randn(5, 32).to(dtype)
    norm, scale = block.norm1, block.ls1
    for weights in (norm.weight, scale.gamma):
        torch.nn.init.normal_(weights)
    expected = torch.nn.functional.rms_norm(values, (32,), norm.weight.to(dtype), 1e-6)
    assert torch.equal(norm(values), expected) and norm(values).dtype == dtype
    gamma = scale.gamma.data.to(dtype)
    scale.gamma.data = gamma
    assert torch.equal(scale(values), (values.float() * gamma.float()).to(dtype))


@pytest.mark.parametrize("name", SOURCES)
def test_a_frozen_encoder_in_bfloat16_is_left_alone_by_autocast(name: str) -> None:
    """Which would compute layer norms in float32."""
    encoder = build(name).requires_grad_(False).to(torch.bfloat16)
    (expected,) = encoder([tiny.frames(0)])
    with torch.autocast("cpu", torch.bfloat16):
        (found,) = encoder([tiny.frames(0)])
    assert torch.equal(found.values, expected.values) and found.values.dtype == torch.bfloat16
    exact = build(name)([tiny.frames(0)])[0].values
    assert (found.values - exact).abs().mean() < 0.02 * exact.abs().mean()
