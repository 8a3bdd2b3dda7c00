"""Frames one by one, through any vision model of transformers (CLIP ViT-L/14-336 in VideoGPT+ and LangDC)."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModel, CLIPVisionConfig, CLIPVisionModel, PretrainedConfig, PreTrainedModel

from langdc.encoders.base import Encoder, encoders
from langdc.language_models import load_pretrained, mark_published
from langdc.log import get_logger
from langdc.modelfiles import read_config, read_settings, reading
from langdc.sources import Source, resolve

logger = get_logger(__name__)

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
_UNREAD = ("pooler.", "text_model.", "text_projection.", "visual_projection.", "logit_scale", "logit_bias")
"""How the names of tensors begin that patch features do not depend on."""


def _vision_config(config: PretrainedConfig) -> PretrainedConfig:
    return getattr(config, "vision_config", config)


def _load(source: Source) -> tuple[PreTrainedModel, Path | None]:
    found = resolve(source, weights=True)
    if not isinstance(found, Path):
        clip = {"model_type": "clip_vision_model"}
        sizes = found.model_copy(update={"config": {**clip, **found.config}})
        return load_pretrained(AutoModel, sizes, dtype=torch.get_default_dtype()), None
    config = _vision_config(read_config(found))
    kind = CLIPVisionModel if isinstance(config, CLIPVisionConfig) else AutoModel
    model = load_pretrained(kind, found, unread=_UNREAD, config=config, dtype=torch.get_default_dtype())
    return mark_published(model, source, found), found


def _statistics(folder: Path | None) -> tuple[tuple[float, ...], tuple[float, ...]]:
    file = folder / "preprocessor_config.json" if folder else None
    settings = read_settings(file) if file is not None and file.is_file() else {}
    if file is not None and (lacking := [key for key in ("image_mean", "image_std") if key not in settings]):
        logger.warning(
            "%s does not state %s: CLIP's values are taken to normalise pixels.", file, " and ".join(lacking)
        )
    found = settings.get("image_mean", CLIP_MEAN), settings.get("image_std", CLIP_STD)
    with reading(str(file), "pixel statistics of three channels"):
        mean, std = ([float(value) for value, _ in zip(each, range(3), strict=True)] for each in found)
    return tuple(mean), tuple(std)


@encoders.register("image")
class ImageEncoder(Encoder):
    """A transformers vision model read at hidden state `layer` (-2: before the last block), without its class token."""

    def __init__(self, source: Source = "sample:clip", layer: int = -2) -> None:
        model, folder = _load(source)
        super().__init__(*_statistics(folder))
        self.model = model
        self.layer = layer
        config = _vision_config(model.config)
        self.width = config.hidden_size
        self.size = config.image_size
        self.side = config.image_size // config.patch_size

    def run(self, pixels: Tensor, frames: list[int]) -> Tensor:
        if isinstance(self.model, CLIPVisionModel):
            # stops after the block that is read; the rest of the network would be computed for nothing
            vision: Any = getattr(self.model, "vision_model", self.model)
            hidden = vision.pre_layrnorm(vision.embeddings(pixels))
            for block in vision.encoder.layers[: self.depth]:
                hidden = block(hidden, attention_mask=None)
        else:
            hidden = self.model(pixel_values=pixels, output_hidden_states=True).hidden_states[self.layer]
        return hidden[:, -(self.side**2) :].unflatten(1, (self.side, self.side))

    @property
    def depth(self) -> int:
        """How many blocks are run."""
        blocks = _vision_config(self.model.config).num_hidden_layers
        return self.layer if self.layer >= 0 else blocks + 1 + self.layer
