"""A checkpoint as published, converted by the command line, gives the logits of the two parts it was built from.

Letters: T frames, H W grid of patches or tokens, C encoder width, D language model width.
"""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional
from transformers import (
    AutoModelForImageTextToText,
    LlavaOnevisionProcessor,
    Qwen2Config,
    Qwen2ForCausalLM,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from langdc import compressors
from langdc.backbones import backbones
from langdc.backbones.inputs import read_prompt
from langdc.types import Frames
from scripts.convert_llava_video import main
from tests import stock
from tests.scripts.test_convert_llava_video import save_tokenizer

ROOT = Path(__file__).resolve().parents[2]
SIDE, PATCHES = 40, 5
"""Pixels and patches on a side. Odd, as the published 27: averages make 2 x 2 of it, transformers' rule 3 x 3."""
VISION = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4, "num_attention_heads": 2, "image_size": SIDE,
    "patch_size": SIDE // PATCHES,
}  # fmt: skip
# The keys of the published config.json that say something about the model, with sizes of our own.
LANGUAGE = {
    "attention_dropout": 0.0, "bos_token_id": 1, "eos_token_id": 2, "hidden_act": "silu", "hidden_size": 64,
    "initializer_range": 0.02, "intermediate_size": 96, "max_position_embeddings": 512, "max_window_layers": 2,
    "num_attention_heads": 4, "num_hidden_layers": 2, "num_key_value_heads": 2, "rms_norm_eps": 1e-6,
    "rope_theta": 1000000.0, "sliding_window": 4096, "use_cache": True, "use_sliding_window": False, "vocab_size": 576,
}  # fmt: skip
LLAVA = {
    "_name_or_path": "", "add_faster_video": False, "add_time_instruction": True, "faster_token_stride": 10,
    "architectures": ["LlavaQwenForCausalLM"], "force_sample": True, "image_aspect_ratio": "anyres_max_9",
    "image_crop_resolution": None,
    "image_grid_pinpoints": [[SIDE, SIDE], [SIDE, 2 * SIDE]], "image_split_resolution": None, "mm_hidden_size": 32,
    "mm_newline_position": "grid", "mm_patch_merge_type": "spatial_unpad", "mm_projector_lr": None,
    "mm_projector_type": "mlp2x_gelu", "mm_resampler_type": None, "mm_spatial_pool_mode": "bilinear",
    "mm_spatial_pool_stride": 2, "mm_tunable_parts": "mm_vision_tower,mm_mlp_adapter,mm_language_model",
    "mm_use_im_patch_token": False, "mm_use_im_start_end": False, "mm_vision_select_feature": "patch",
    "mm_vision_select_layer": -2, "mm_vision_tower": "someone/tiny-siglip", "mm_vision_tower_lr": 2e-6,
    "model_type": "llava", "rope_scaling": None, "tie_word_embeddings": False, "tokenizer_model_max_length": 512,
    "tokenizer_padding_side": "right", "torch_dtype": "float32", "transformers_version": "4.40.0.dev0",
    "use_mm_proj": True, "use_pos_skipping": False, "vision_tower_pretrained": None,
}  # fmt: skip
GENERATION = {
    "bos_token_id": 0, "do_sample": True, "eos_token_id": [2, 0], "pad_token_id": 0, "repetition_penalty": 1.05,
    "temperature": 0.7, "top_k": 20, "top_p": 0.8, "transformers_version": "4.40.0.dev0",
}  # fmt: skip


@dataclass
class Parts:
    """The encoder with all its layers, the language model, and what LLaVA adds between them."""

    encoder: SiglipVisionModel
    projector: nn.Sequential
    newline: Tensor
    language: Qwen2ForCausalLM

    def patches(self, video: Frames) -> Tensor:
        """Pixels from -1 to 1 through all layers but the last, without the norm behind it: [T,D,H,W]."""
        vision: Any = getattr(self.encoder, "vision_model", self.encoder)
        states = vision.embeddings(video.pixels / 127.5 - 1)
        for layer in vision.encoder.layers[:-1]:
            states = layer(states, attention_mask=None)
        return self.projector(states).unflatten(1, (PATCHES, PATCHES)).permute(0, 3, 1, 2)

    def rows_of_averages(self, video: Frames) -> Tensor:
        """The authors' rule: averages of 2 x 2 patches, the odd row and column left out, and a newline per row."""
        pooled = functional.avg_pool2d(self.patches(video), 2)
        ends = self.newline[:, None, None].expand(*pooled.shape[:3], 1)
        return torch.cat([pooled, ends], 3).permute(0, 2, 3, 1).flatten(0, 2)

    def interpolated(self, video: Frames) -> Tensor:
        """The rule of LLaVA-OneVision: half the side, rounded up, and one newline after all."""
        size = [-(-PATCHES // 2)] * 2
        pooled = functional.interpolate(self.patches(video), size=size, mode="bilinear").permute(0, 2, 3, 1)
        return torch.cat([pooled.flatten(0, 2), self.newline[None]])

    @torch.no_grad()
    def logits(self, video: Tensor, before: Tensor, after: Tensor) -> Tensor:
        """After the text ids `before`, a video's embeddings and the ids `after`: [1,vocabulary]."""
        embed = self.language.get_input_embeddings()
        whole = torch.cat([embed(before), video, embed(after)])
        return self.language(inputs_embeds=whole[None]).logits[:, -1]


@pytest.fixture(scope="module")
def parts() -> Parts:
    torch.manual_seed(5)
    encoder = SiglipVisionModel(SiglipVisionConfig(**VISION)).eval()
    projector = nn.Sequential(nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 64))
    language = Qwen2ForCausalLM(Qwen2Config(**LANGUAGE, tie_word_embeddings=False)).eval()
    for part in (encoder, projector, language):
        for tensor in part.parameters():
            nn.init.normal_(tensor, std=0.2)  # norms and biases too, so that leaving one out shows
    return Parts(encoder, projector, torch.randn(64), language)


def encoder_tensors(parts: Parts) -> dict[str, Tensor]:
    """The encoder's tensors as its own directory names them, whatever transformers calls them now."""
    found = {f"vision_model.{n.removeprefix('vision_model.')}": t for n, t in parts.encoder.state_dict().items()}
    return {name: tensor.detach().clone() for name, tensor in found.items()}


@pytest.fixture(scope="module")
def converted(parts: Parts, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Made by the command itself from three files with an index; the encoder is in them, without its last layer."""
    place = tmp_path_factory.mktemp("published")
    tower = encoder_tensors(parts)
    used = {n: t for n, t in tower.items() if ".head." not in n and ".layers.3." not in n}
    tensors = {f"model.vision_tower.vision_tower.{name}": tensor for name, tensor in used.items()}
    tensors |= {f"model.mm_projector.{name}": tensor for name, tensor in parts.projector.state_dict().items()}
    tensors |= {"model.image_newline": parts.newline, **parts.language.state_dict()}
    original, vision = place / "LLaVA-Video", place / "siglip"
    save_tokenizer_and_settings(original)
    names = sorted(tensors)
    files = {f"model-0000{n + 1}-of-00003.safetensors": names[n::3] for n in range(3)}
    for file, some in files.items():
        save_file({name: tensors[name].contiguous() for name in some}, original / file, {"format": "pt"})
    listed = {name: file for file, some in files.items() for name in some}
    (original / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": listed}))
    vision.mkdir()
    (vision / "config.json").write_text(json.dumps({"model_type": "siglip", "vision_config": VISION}))
    save_file(tower, vision / "model.safetensors")
    done = convert(original, place / "new", "--vision", vision, "--shard-gb", "6e-5")
    assert done.returncode == 0, done.stderr
    assert f"{len(tensors)} tensors taken, 0 dropped, none missing" in " ".join(done.stdout.split())
    assert "that of the backbone llava_video" in done.stdout
    return place / "new"


def save_tokenizer_and_settings(folder: Path) -> None:
    folder.mkdir()
    save_tokenizer(folder)
    (folder / "config.json").write_text(json.dumps({**LANGUAGE, **LLAVA}))
    (folder / "generation_config.json").write_text(json.dumps(GENERATION))


def convert(*words: object) -> subprocess.CompletedProcess:
    command = [sys.executable, str(ROOT / "scripts" / "convert_llava_video.py"), *map(str, words)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


OTHER = {"rows_of_averages": "interpolated", "interpolated": "rows_of_averages"}
VIDEO = stock.clip(3, count=4, height=SIDE, width=SIDE)


@pytest.mark.parametrize(("grid", "rule"), [("authors", "rows_of_averages"), ("onevision", "interpolated")])
def test_the_backbone_gives_the_logits_of_the_parts(converted: Path, parts: Parts, grid: str, rule: str) -> None:
    backbone = backbones.build("llava_video", source=str(converted), grid=grid)
    videos = backbone.features_of([VIDEO])
    whole = compressors.build("identity", frames_per_segment=1)([videos[0]]).tokens[0]
    prompt = backbone.prompt(stock.conversation([VIDEO]), media=videos)
    found = read_prompt(
        backbone, prompt, [backbone.append_newline_tokens(whole, videos[0])], None, [len(VIDEO)], [len(VIDEO)]
    )
    at = prompt.slots[0].position
    expected, other = (
        parts.logits(getattr(parts, name)(VIDEO), prompt.ids[:at], prompt.ids[at:]) for name in (rule, OTHER[rule])
    )
    assert (expected - other).abs().max() > 0.05
    torch.testing.assert_close(found.logits, expected, atol=2e-5, rtol=1e-5)


@torch.no_grad()
def test_plain_transformers_gives_the_logits_of_the_parts(converted: Path, parts: Parts) -> None:
    model = AutoModelForImageTextToText.from_pretrained(converted)
    processor: Any = LlavaOnevisionProcessor.from_pretrained(converted)
    text = processor.apply_chat_template(stock.conversation([VIDEO]), add_generation_prompt=True)
    inputs = processor(text=[text], videos=[VIDEO.pixels], do_sample_frames=False, return_tensors="pt")
    ids = inputs["input_ids"][0]
    marks = (ids == model.config.video_token_index).nonzero()[:, 0]
    expected = parts.logits(parts.interpolated(VIDEO), ids[: marks[0]], ids[marks[-1] + 1 :])
    assert len(marks) == 4 * 9 + 1
    torch.testing.assert_close(model(**inputs).logits[:, -1], expected, atol=2e-5, rtol=1e-5)


def test_settings_of_generation_and_positions_are_taken_over(converted: Path) -> None:
    backbone = backbones.build("llava_video", source=str(converted))
    assert backbone.model.config.get_text_config().rope_parameters == {"rope_type": "default", "rope_theta": 1e6}
    assert {name: getattr(backbone.generation_config, name) for name in ("top_k", "top_p", "repetition_penalty")} == {
        "top_k": 20,
        "top_p": 0.8,
        "repetition_penalty": 1.05,
    }
    assert backbone.end_ids == [0, 2, backbone.tokenizer.eos_token_id]


def test_a_checkpoint_without_its_encoder_needs_the_encoders_weights(tmp_path: Path, parts: Parts, capsys) -> None:
    original, vision = tmp_path / "original", tmp_path / "siglip"
    save_tokenizer_and_settings(original)
    newline = {"model.image_newline": parts.newline}
    projector = {f"model.mm_projector.{name}": tensor for name, tensor in parts.projector.state_dict().items()}
    save_file({**newline, **projector, **parts.language.state_dict()}, original / "model.safetensors")
    vision.mkdir()
    (vision / "config.json").write_text(json.dumps({"model_type": "siglip", "vision_config": VISION}))
    assert main([str(original), str(tmp_path / "new"), "--vision", str(vision)]) == 2
    assert f"{vision} holds no weights" in capsys.readouterr().err
    save_file({"logit_scale": torch.ones(1)}, vision / "model.safetensors")
    assert main([str(original), str(tmp_path / "new"), "--vision", str(vision)]) == 2
    said = capsys.readouterr().err
    assert "missing: vision_tower.vision_model.embeddings.patch_embedding.bias" in said
    assert "is taken from --language DIR or --vision DIR" in said
    assert not (tmp_path / "new").exists() and not (tmp_path / "new.partial").exists()
