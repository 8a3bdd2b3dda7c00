"""Teach the sample encoders to see: supervised per object on full scenes of 0 to 4 objects.

Crops of single objects do not teach a transformer to see scenes, so every example is a whole segment, and the loss
reads each object off the patches it covers.
Letters: B segments, T frames, H W patch grid, C width.
"""

import itertools
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from langdc.sample.render import draw
from langdc.sample.scenes import (
    BACKGROUNDS,
    COLOURS,
    FRAMES_PER_SEGMENT,
    LATEST,
    MAX_OBJECTS,
    MOTIONS,
    RADII,
    SHAPES,
    SIZE,
    Segment,
    Thing,
    sample_segment,
)

QUARTERS = (0, 1, 2, 3)
FIELDS = {
    "colour": tuple(COLOURS),
    "shape": SHAPES,
    "radius": tuple(range(RADII[0], RADII[1] + 1)),
    "column": QUARTERS,
    "row": QUARTERS,
    "motion": tuple(MOTIONS),
    "start": tuple(range(LATEST + 1)),
}
"""What is read of an object, with its values; `column` and `row` are the quarters of the picture that hold its centre
in the middle of its segment. The last two need more than one frame."""
STILL, MOVING = ("colour", "shape", "radius", "column", "row"), tuple(FIELDS)


def value(thing: Thing, field: str) -> str | int:
    """What an object has in one of `FIELDS`."""
    if field in ("column", "row"):
        ends = thing.centre(0), thing.centre(FRAMES_PER_SEGMENT - 1)
        axis = ("column", "row").index(field)
        return (ends[0][axis] + ends[1][axis]) * len(QUARTERS) // (2 * SIZE)
    return getattr(thing, field)


@dataclass
class Batch:
    """Segments with what is to be read off them.

    `pixels` [B,T,3,SIZE,SIZE] in 0..255; `cover` [objects,T,H,W] the share of each patch inside an object's box;
    `owner` [objects] the segment an object belongs to; `classes` per field the object's class [objects]; `ground` [B]
    the class of each segment's background.
    """

    pixels: Tensor
    cover: Tensor
    owner: Tensor
    classes: dict[str, Tensor]
    ground: Tensor


def coverage(segment: Segment, side: int) -> np.ndarray:
    """The share of every patch that lies inside each object's box: [objects,T,side,side]."""
    patch = SIZE // side
    starts = np.arange(side) * patch
    cover = np.zeros((len(segment), FRAMES_PER_SEGMENT, side, side), dtype=np.float32)
    for which, thing in enumerate(segment):
        reach = thing.radius
        for frame in range(thing.start, FRAMES_PER_SEGMENT):
            along = [
                np.clip(np.minimum(starts + patch, c + reach + 1) - np.maximum(starts, c - reach), 0, None) / patch
                for c in thing.centre(frame)
            ]
            cover[which, frame] = np.outer(along[1], along[0])
    return cover


def make_batch(segments: list[Segment], frames: np.ndarray, side: int) -> Batch:
    """Collect segments and their drawn frames [B,T,SIZE,SIZE,3] into tensors."""
    things = [(b, thing) for b, segment in enumerate(segments) for thing in segment]
    classes = {
        field: torch.tensor([names.index(value(thing, field)) for _, thing in things], dtype=torch.long)
        for field, names in FIELDS.items()
    }
    return Batch(
        pixels=torch.from_numpy(frames).permute(0, 1, 4, 2, 3).float(),
        cover=torch.from_numpy(np.concatenate([coverage(segment, side) for segment in segments])),
        owner=torch.tensor([b for b, _ in things], dtype=torch.long),
        classes=classes,
        ground=torch.tensor([list(BACKGROUNDS).index(segment.background) for segment in segments]),
    )


def like_h264(pixels: Tensor) -> Tensor:
    """Blur the chroma over 2x2 pixels as yuv420p video does, so that encoders trained on drawings see decoded files.

    `pixels` [B,T,3,SIZE,SIZE]; luma stays sharp.
    """
    luma = (pixels * pixels.new_tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(2, keepdim=True)
    chroma = (pixels - luma).flatten(0, 1)
    halved = F.interpolate(F.avg_pool2d(chroma, 2), scale_factor=2, mode="bilinear", align_corners=False)
    return (luma + halved.view_as(pixels)).clamp(0, 255).round()


def batches(
    seed: int, size: int, side: int, objects: Callable[[int], int | None], varied: bool = True
) -> Iterator[Batch]:
    """Draw training batches for ever; `objects(i)` fixes the number of objects of the batch's i-th segment."""
    rng = np.random.default_rng(seed)
    while True:
        segments = [sample_segment(rng, objects(i), varied) for i in range(size)]
        batch = make_batch(segments, np.stack([draw(segment, rng) for segment in segments]), side)
        batch.pixels = like_h264(batch.pixels)
        yield batch


def object_vectors(grid: Tensor, batch: Batch) -> Tensor:
    """The mean patch vector under each object, weighted by coverage: grid [B,T,H,W,C] to [objects,C]."""
    weight = batch.cover / batch.cover.sum((1, 2, 3), keepdim=True)
    return torch.einsum("nthw,nthwc->nc", weight, grid[batch.owner])


class ObjectReader(nn.Module):
    """Linear heads that read fields of objects off patch vectors, class 0 for "nothing", and the background."""

    def __init__(self, width: int, fields: tuple[str, ...]) -> None:
        super().__init__()
        self.heads = nn.ModuleDict({field: nn.Linear(width, 1 + len(FIELDS[field])) for field in fields})
        self.ground = nn.Linear(width, len(BACKGROUNDS))

    def read(self, grid: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Logits per object [objects,classes], from the mean patch vector under it. `grid` [B,T,H,W,C]."""
        pooled = object_vectors(grid, batch)
        return {field: head(pooled)[:, 1:] for field, head in self.heads.items()}

    def loss(self, grid: Tensor, batch: Batch) -> Tensor:
        """Cross-entropy of every object, and of every single patch against what covers it most."""
        ground = self.ground(grid).flatten(1, 3)
        total = F.cross_entropy(ground.transpose(1, 2), batch.ground[:, None].expand(ground.shape[:2]))
        logits = self.read(grid, batch)
        hidden = torch.zeros(grid.shape[:-1])
        labels = {field: torch.zeros(grid.shape[:-1], dtype=torch.long) for field in self.heads}
        for number, owner in enumerate(batch.owner.tolist()):
            wins = batch.cover[number] > hidden[owner].clamp(min=0.3)
            hidden[owner] = torch.maximum(hidden[owner], batch.cover[number])
            for field, label in labels.items():
                label[owner][wins] = batch.classes[field][number] + 1
        for field, head in self.heads.items():
            total = total + F.cross_entropy(head(grid).flatten(0, -2), labels[field].flatten())
            total = total + F.cross_entropy(logits[field], batch.classes[field])
        return total


@torch.no_grad()
def linear_probe(encode: Callable[[Tensor], Tensor], fields: tuple[str, ...], side: int, seed: int) -> dict[str, float]:
    """How well a linear map reads each field off frozen features: the share of held-out objects it gets right.

    The map is fitted by least squares on 640 scenes of four objects and measured on 256 others; it sees the mean patch
    vector under an object. `encode` maps pixels to a grid [B,T,side,side,C].
    """
    fit, held_out = (_objects(encode, side, seed + part, scenes) for part, scenes in enumerate((640, 256)))
    right = {}
    for field in fields:
        wanted = F.one_hot(fit[1][field], len(FIELDS[field])).float()
        readout = torch.linalg.lstsq(F.pad(fit[0], (0, 1), value=1.0), wanted).solution
        guessed = (F.pad(held_out[0], (0, 1), value=1.0) @ readout).argmax(-1)
        right[field] = (guessed == held_out[1][field]).float().mean().item()
    return right


def _objects(encode: Callable[[Tensor], Tensor], side: int, seed: int, scenes: int) -> tuple[Tensor, dict[str, Tensor]]:
    """The mean patch vector [objects,C] under each object of scenes of four, and its classes."""
    vectors, classes = [], []
    for batch in itertools.islice(batches(seed, 32, side, lambda _: MAX_OBJECTS), scenes // 32):
        vectors.append(object_vectors(encode(batch.pixels), batch))
        classes.append(batch.classes)
    return torch.cat(vectors), {field: torch.cat([each[field] for each in classes]) for field in FIELDS}


def pretrain(
    encoder: nn.Module,
    encode: Callable[[Tensor], Tensor],
    reader: ObjectReader,
    source: Iterator[Batch],
    steps: int,
    learning_rate: float,
    report: Callable[[int, float, float], None],
) -> None:
    """Train an encoder and its reader together in bf16 autocast, the blocks' matrices with Muon, the rest with AdamW.

    The rate warms up, at most over 200 steps, stays, and falls linearly over the last third.
    """
    blocks = [p for name, p in encoder.named_parameters() if p.ndim == 2 and re.search(r"\b(blocks|layers)\b", name)]
    chosen = {id(p) for p in blocks}
    parameters = [*encoder.parameters(), *reader.parameters()]
    rest = [p for p in parameters if id(p) not in chosen]
    optimizers = [
        torch.optim.Muon(blocks, lr=learning_rate, weight_decay=0.02, momentum=0.95, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(rest, lr=learning_rate, weight_decay=0.02, betas=(0.9, 0.98)),
    ]
    warm = min(200, steps / 10)
    started = time.monotonic()
    for step in range(1, steps + 1):
        batch = next(source)
        with torch.autocast("cpu", torch.bfloat16):
            grid = encode(batch.pixels)
        loss = reader.loss(grid.float(), batch)
        encoder.zero_grad()
        reader.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = learning_rate * min(1.0, step / warm, 3 * (steps - step + 1) / steps)
            optimizer.step()
        if step % 100 == 0:
            report(step, loss.item(), time.monotonic() - started)
