"""What frame selectors share: scores of frames for a question. Letters: T frames."""

from abc import abstractmethod
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize
from transformers import MODEL_MAPPING, AutoImageProcessor, AutoModel

from langdc.interfaces import FrameSelector
from langdc.language_models import load_pretrained, open_tokenizer
from langdc.log import get_logger
from langdc.modelfiles import read_config, reading
from langdc.registry import Registry, check_keywords
from langdc.sources import resolve
from langdc.types import Frames

logger = get_logger(__name__)
frameselectors: Registry[FrameSelector] = Registry("frameselector", FrameSelector)

Scorer = dict[str, Any] | Callable[[Frames, str], Tensor]
_AT_ONCE = 64
"""Frames that are embedded in one call."""


class ScoredSelector(FrameSelector):
    """Chooses by a score per frame: a method writes `choose`.

    `scorer`: {"model": ...} of an image-text model (`ImageTextScorer`), or a function of frames and a question that
    gives scores [T]. It is always named: no backbone has both an image tower and its text tower (VideoGPT+ and LLaVA
    took the former alone from such models, Qwen trained its own).
    """

    def __init__(self, scorer: Scorer, fps: float = 1.0, most: int = 1024) -> None:
        if fps <= 0 or most < 1:
            raise ValueError(f"fps={fps}, most={most}: give more than 0 frames per second, and at most 1 or more.")
        if isinstance(scorer, dict):
            check_keywords("scorer", ImageTextScorer, scorer)
            scorer = ImageTextScorer(**scorer)
        self.scorer, self.fps, self.most = scorer, fps, most
        self.side = getattr(scorer, "side", self.side)

    def select(self, frames: Frames, question: str, budget: int) -> Tensor:
        if len(frames) <= budget:
            return torch.arange(len(frames))
        scores = self.scorer(frames, question).double().cpu().numpy()
        if scores.shape != (len(frames),) or not np.isfinite(scores).all():
            fine = np.isfinite(scores).sum()
            raise ValueError(
                f"The scorer gave scores of shape {scores.shape}, {fine} of them finite; {len(frames)} finite ones are "
                "needed, one for each frame."
            )
        return torch.tensor(sorted(self.choose(scores, budget)), dtype=torch.long)

    @abstractmethod
    def choose(self, scores: np.ndarray, budget: int) -> list[int]:
        """The chosen places among T scores, in any order."""


def best(scores: np.ndarray, count: int) -> np.ndarray:
    """The places of the `count` highest scores, best first; of equal ones the first."""
    return np.argsort(-scores, kind="stable")[:count]


class ImageTextScorer:
    """How near each frame is to a question: the cosine of their embeddings [T], by an image-text model in float32.

    `model`: the folder or hub id of a model of transformers with both towers, such as CLIP or SigLIP; ValueError for
    others. A question that is longer than its text tower reads is cut off at the end, which is said once.
    """

    def __init__(self, model: str) -> None:
        found = resolve(model, weights=True)
        assert isinstance(found, Path)  # only settings name an architecture
        config: Any = read_config(found)
        towers = MODEL_MAPPING.get(type(config), None)
        if not all(hasattr(towers, f"get_{part}_features") for part in ("text", "image")):
            what = f"{model} is a {config.model_type!r} model, which embeds no texts beside images"
            raise ValueError(f"{what}. Give one that does, such as openai/clip-vit-base-patch32.")
        self.folder, self.tokenizer = found, open_tokenizer(found)
        with reading(found, "an image processor"):
            self.processor = AutoImageProcessor.from_pretrained(found, trust_remote_code=False)
        self.side: int = getattr(config.vision_config, "image_size", 224)
        self.longest: int = config.text_config.max_position_embeddings
        self.padding = "max_length" if config.model_type.startswith("siglip") else False  # as they were trained
        self._told = False
        self.model = _towers(found)  # not by the first question, which would be charged for it

    @torch.no_grad()
    def __call__(self, frames: Frames, question: str) -> Tensor:
        device, longest = frames.pixels.device, self.longest
        model, options = self.model.to(device), {"padding": self.padding, "return_tensors": "pt"}
        length = len(self.tokenizer(question)["input_ids"])
        if length > longest and not self._told:
            self._told = True
            logger.warning("%s reads %d tokens; longer questions are cut off: %r", self.folder, longest, question)
        ids = self.tokenizer([question], truncation=True, max_length=longest, **options).to(device)
        text, scores = normalize(model.get_text_features(**ids).pooler_output[0], dim=-1), []
        for some in frames.pixels.split(_AT_ONCE):
            values = self.processor(images=list(some), return_tensors="pt")["pixel_values"].to(device)
            scores.append(normalize(model.get_image_features(pixel_values=values).pooler_output, dim=-1) @ text)
        return torch.cat(scores)


@lru_cache(maxsize=1)
def _towers(folder: Path) -> Any:
    """The model in a folder, which the entries of an evaluation share."""
    return load_pretrained(AutoModel, folder, dtype=torch.float32).eval()
