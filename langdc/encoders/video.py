"""Segments of a few frames at once, through InternVideo2."""

from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from langdc.config import check
from langdc.encoders.base import Encoder, encoders
from langdc.encoders.internvideo2 import InternVideo2, InternVideo2Config
from langdc.language_models import mark_published
from langdc.modelfiles import check_complete, check_depth, count_tensors, read_settings
from langdc.sources import Source, resolve

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@encoders.register("internvideo2")
class VideoEncoder(Encoder):
    """InternVideo2 over clips; `source`: a directory with config.json (`InternVideo2Config`) and model.safetensors."""

    def __init__(self, source: Source = "sample:internvideo2") -> None:
        super().__init__(IMAGENET_MEAN, IMAGENET_STD)
        found = resolve(source, weights=True)
        settings = read_settings(found / "config.json") if isinstance(found, Path) else found.config
        config = check(InternVideo2Config, settings, f"The InternVideo2 {source}")
        check_depth(settings, count_tensors(found) if isinstance(found, Path) else 0, f"The InternVideo2 {source}")
        if isinstance(found, Path):
            with torch.device("meta"):  # the file's parts are not drawn first
                self.model = InternVideo2(config)
            if torch.get_default_device().type != "meta":
                self._read(found / "model.safetensors")
            mark_published(self.model, source, found)
        else:
            self.model = InternVideo2(config)
            self.model.reset_parameters()
        self.width = self.model.config.width
        self.size = self.model.config.image_size
        self.side = self.model.config.side

    def _read(self, file: Path) -> None:
        place = {"device": torch.get_default_device(), "dtype": torch.get_default_dtype(), "copy": True}
        with safe_open(file, "pt") as opened:  # the type changes tensor by tensor, the file is never held whole
            weights = {name: opened.get_tensor(name).to(**place) for name in opened.keys()}  # noqa: SIM118  # no mapping
        expected = {name: tuple(tensor.shape) for name, tensor in self.model.state_dict().items()}
        check_complete(f"the InternVideo2 in {file.parent}", weights, expected, advice="Copy or convert it again.")
        self.model.load_state_dict(weights, assign=True)

    def run(self, pixels: Tensor, frames: list[int]) -> Tensor:
        clip = self.model.config.frames
        singles = [length == 1 for length in frames]
        if any(length % clip for length, single in zip(frames, singles, strict=True) if not single):
            raise ValueError(
                f"Videos of {frames} frames do not divide into clips of {clip}, which InternVideo2 takes; sample "
                f"segments of {clip} frames, or a single frame for an image."
            )
        parts = pixels.split(frames)
        grids: list[Tensor | None] = [None] * len(frames)
        for length, wanted in ((clip, False), (1, True)):
            which = [number for number, single in enumerate(singles) if single is wanted]
            if which:
                clips = torch.cat([parts[number] for number in which]).unflatten(0, (-1, length))
                found = self.model(clips).flatten(0, 1).split([frames[number] for number in which])
                for number, grid in zip(which, found, strict=True):
                    grids[number] = grid
        return torch.cat([grid for grid in grids if grid is not None])
