"""What frame selectors share: scores of frames for a question. Letters: T frames."""

from abc import abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import numpy as np
import torch
from torch import Tensor, nn
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

_AT_ONCE = 64
"""Frames that are embedded in one call."""
_loaded: WeakValueDictionary[Path, nn.Module] = WeakValueDictionary()  # shared by the entries of an evaluation


class ScoredSelector(FrameSelector):
    """Chooses by a score per frame: a method writes `choose`.

    `scorer`: {"model": ...}, an image-text model (`ImageTextScorer`), or a function of frames and a question that gives
    scores [T]. No backbone has both an image tower and its text tower: those of VideoGPT+ and LLaVA were published as
    parts of such models, without the text tower, and those of Qwen have none. So the model is always named.
    """

    def __init__(
        self, scorer: dict[str, Any] | Callable[[Frames, str], Tensor], fps: float = 1.0, most: int = 1024
    ) -> None:
        if fps <= 0 or most < 1:
            raise ValueError(f"fps={fps}, most={most}: give more than 0 frames per second, and at most 1 or more.")
        if isinstance(scorer, Mapping):
            check_keywords("scorer", ImageTextScorer, scorer)
            scorer = ImageTextScorer(**scorer)
        self.scorer, self.fps, self.most = scorer, fps, most
        self.side = getattr(scorer, "side", self.side)

    def select(self, frames: Frames, question: str, budget: int) -> Tensor:
        if len(frames) <= budget:
            return torch.arange(len(frames))
        scores = self.scorer(frames, question).double().cpu().numpy()
        if scores.shape != (len(frames),) or not np.isfinite(scores).all():
            raise ValueError(f"The scorer gave scores {scores.shape} or NaN; {len(frames)} finite ones are needed.")
        return torch.tensor(sorted(self.choose(scores, budget)), dtype=torch.long)

    @abstractmethod
    def choose(self, scores: np.ndarray, budget: int) -> list[int]:
        """The chosen places among T scores, in any order."""


def best(scores: np.ndarray, count: int) -> np.ndarray:
    """The places of the `count` highest scores, best first; of equal ones the first."""
    return np.argsort(-scores, kind="stable")[:count]


class ImageTextScorer:
    """How near each frame is to a question: the cosine of their embeddings [T], by an image-text model in float32.

    `model`: the folder or hub id of a model of transformers with an image and a text tower, such as CLIP or SigLIP. A
    question longer than its text tower reads is cut off at the end, which is said once. ValueError for other models.
    """

    def __init__(self, model: str) -> None:
        found = resolve(model, weights=True)
        assert isinstance(found, Path)  # only settings name an architecture
        config: Any = read_config(found)
        if not hasattr(MODEL_MAPPING.get(type(config), None), "get_text_features"):
            raise ValueError(
                f"{model} is a {config.model_type!r} model, which embeds no texts beside images. Give one that does, "
                "such as openai/clip-vit-large-patch14."
            )
        self.folder, self.tokenizer = found, open_tokenizer(found)
        with reading(found, "an image processor"):
            self.processor = AutoImageProcessor.from_pretrained(found, trust_remote_code=False)
        self.longest: int = config.text_config.max_position_embeddings
        self.side: int = getattr(config.vision_config, "image_size", 224)
        # SigLIP was trained with padding
        self.padding = "max_length" if config.model_type.startswith("siglip") else False
        self._model: Any = None
        self._told = False

    @torch.no_grad()
    def __call__(self, frames: Frames, question: str) -> Tensor:
        device = frames.pixels.device
        if self._model is None:
            loaded = _loaded.get(self.folder)
            self._model = loaded or load_pretrained(AutoModel, self.folder, dtype=torch.float32).eval()
            _loaded[self.folder] = self._model
        self._model.to(device)
        length = len(self.tokenizer(question)["input_ids"])
        if length > self.longest and not self._told:
            self._told = True
            logger.warning("%s reads %d tokens; longer questions are cut off: %r", self.folder, self.longest, question)
        cut = {"truncation": True, "max_length": self.longest, "padding": self.padding, "return_tensors": "pt"}
        text = self._model.get_text_features(**self.tokenizer([question], **cut).to(device)).pooler_output
        scores = []
        for some in frames.pixels.split(_AT_ONCE):
            values = self.processor(images=list(some), return_tensors="pt")["pixel_values"].to(device)
            images = self._model.get_image_features(pixel_values=values).pooler_output
            scores.append(normalize(images, dim=-1) @ normalize(text[0], dim=-1))
        return torch.cat(scores)
