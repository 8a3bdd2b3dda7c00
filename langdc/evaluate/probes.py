"""Linear probes: what ridge regression reads from the vectors of objects or segments of videos.

Letters: n examples, m others, d width of a vector, k values of a label, V videos, T steps, H W patch grid.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median

import torch
import torch.nn.functional as F
from torch import Tensor

from langdc.data.records import ObjectRecord, Record, SegmentRecord
from langdc.evaluate import statistics

LEAST = 20
"""A label with fewer examples to train on, or to test with, is left out."""
_PENALTIES = [10.0**power for power in range(2, -6, -1)]
_TOUCHING = 1e-6  # of a frame's side: less is rounding


@dataclass(frozen=True)
class Score:
    """The accuracy on test examples, and half the width of its 95 % interval over videos, both in %."""

    accuracy: float
    half_width: float


@dataclass(frozen=True)
class Probed:
    """A label: its number of `values`, its numbers of training and test examples, the accuracy in % of always giving
    the most frequent training value, and a score for each place that it was read from.
    """

    label: str
    values: int
    train: int
    test: int
    majority: float
    scores: list[Score]


def split(videos: int) -> Tensor:
    """The part of each video [V], always the same: 2 to test (half), 1 to choose the penalty (a sixth), 0 to fit."""
    rank = torch.randperm(videos, generator=torch.Generator().manual_seed(0))
    return torch.where(2 * rank >= videos, 2, (6 * rank < videos).long())


def probe(labels: Sequence[Mapping[str, str]], video: Tensor, part: Tensor, places: Sequence[Tensor]) -> Iterator:
    """A `Probed` for each label of n examples, or a sentence that says why it is left out.

    `labels` of each example, which may lack some; `video` [n]: the number of its video; `part` [V] as from `split`;
    `places`: the vectors of the examples in each place, [n,d] each.
    """
    for label in dict.fromkeys(name for each in labels for name in each):
        known = torch.tensor([number for number, each in enumerate(labels) if label in each])
        parts, values = part[video[known]], [labels[number][label] for number in known.tolist()]
        train = Counter(value for value, of in zip(values, parts.tolist(), strict=True) if of < 2)
        test = len(values) - train.total()
        if min(train.total(), test) < LEAST:
            yield f"{label}: {train.total()} examples to train on and {test} to test with; each takes {LEAST}."
        elif len(train) == 1:
            yield f"{label}: all {train.total()} training examples are {next(iter(train))!r}."
        else:
            order = {value: number for number, (value, _) in enumerate(train.most_common())}
            # -1: a value that no training example has, which no map can give
            y, clusters = torch.tensor([order.get(value, -1) for value in values]), video[known][parts == 2].tolist()
            majority = 100 * (y[parts == 2] == 0).double().mean().item()
            hits = [read(place[known], y, parts) == y[parts == 2] for place in places]
            scores = [_score(hit, clusters) for hit in hits]
            yield Probed(label, len(train), train.total(), test, majority, scores)


def _score(hit: Tensor, clusters: Sequence[int]) -> Score:
    found = statistics.mean(hit.double().tolist(), list(map(str, clusters)))
    return Score(100 * found.value, 50 * (found.high - found.low))


def read(x: Tensor, y: Tensor, part: Tensor) -> Tensor:
    """The values that ridge regression on `x` [n,d] reads for the examples of part 2: [m].

    `y` [n]: values from 0 on, -1 where unknown (in part 2 only). The penalty is the one of 8 with the best accuracy on
    part 1 after fitting on part 0, the largest of equals.
    """
    x, target = x.double(), F.one_hot(y.clamp(min=0)).double()
    fit, held, both, test = part == 0, part == 1, part < 2, part == 2
    tried = _ridge(x[fit], target[fit], x[held], _PENALTIES) if fit.any() else []
    right = [(guess == y[held]).sum().item() for guess in tried]
    penalty = _PENALTIES[right.index(max(right)) if right else 0]
    return _ridge(x[both], target[both], x[test], [penalty])[0]


def _ridge(x: Tensor, y: Tensor, others: Tensor, penalties: Sequence[float]) -> list[Tensor]:
    """For each penalty the largest of k outputs [m] for `others` [m,d], of ridge regression of `y` [n,k] on
    standardised `x` [n,d]: the W with least |y - xW|^2 + n penalty |W|^2, in closed form by the smaller Gram matrix.
    """
    mean, spread, centre = x.mean(0), x.std(0), y.mean(0)
    scale = torch.where(spread > 1e-6 * spread.max(), 1 / spread, 0)  # what never varies tells nothing
    x, others = (x - mean) * scale, (others - mean) * scale
    wide = x.shape[1] > len(x)
    found, basis = torch.linalg.eigh(x @ x.T if wide else x.T @ x)
    left, right = (others @ (x.T @ basis), y - centre) if wide else (others @ basis, x.T @ (y - centre))
    right = basis.T @ right
    return [(left / (found + penalty * len(x)) @ right + centre).argmax(1) for penalty in penalties]


# ---- objects: the patches that show them, and their labels


def covered(thing: ObjectRecord, segment: int, segments: int, shape: Sequence[int]) -> Tensor:
    """How much of an object each patch of a grid [T,H,W,...] of its video shows, in area and time: [T,H,W]."""
    steps, rows, columns = shape[:3]
    cover = torch.zeros(steps, rows, columns)
    for number, box in enumerate(thing.boxes):
        if box is not None:
            left, top, right, bottom = box
            start, end = ((segment + (number + after) / len(thing.boxes)) / segments for after in (0, 1))
            area = _overlap(top, bottom, rows)[:, None] * _overlap(left, right, columns)
            cover += _overlap(start, end, steps)[:, None, None] * area
    return cover


def _overlap(start: float, end: float, parts: int) -> Tensor:
    """How much of each of equal parts of 0 to 1 lies between `start` and `end`: [parts]."""
    edges = torch.arange(parts + 1, dtype=torch.double) / parts
    both = edges[1:].clamp(max=end) - edges[:-1].clamp(min=start)
    return torch.where(both > _TOUCHING, both, 0).float()


def things(record: Record) -> Iterator[tuple[int, ObjectRecord]]:
    """The objects of a record with the numbers of their segments."""
    return ((number, thing) for number, segment in enumerate(record.segments) for thing in segment.objects)


def examples(records: Sequence[Record], part: Tensor) -> dict[str, tuple[list[dict[str, str]], list[int]]]:
    """The labels of all objects ("object") and segments ("segment"), and the number of the video of each.

    Added to those of the records: the halves of the frame in which an object's centre stays (where it stays in one),
    whether its mean area is above the median of the training objects, and the number of objects of its segment. An
    object also has the labels of its segment; a segment has those of its object where it shows just one.
    """
    found = [(number, s, thing) for number, record in enumerate(records) for s, thing in things(record)]
    areas = [fmean((b[2] - b[0]) * (b[3] - b[1]) for b in thing.boxes if b) for _, _, thing in found]
    middle = median(area for area, (number, _, _) in zip(areas, found, strict=True) if part[number] < 2)
    objects, own = [], defaultdict(list)
    for (number, s, thing), area in zip(found, areas, strict=True):
        larger = "yes" if area > middle * 1.001 else "no"  # of equal ones none is
        own[number, s].append({**_halves(thing), "larger than the median": larger, **thing.labels})
        objects.append({**own[number, s][-1], **_of_segment(records[number].segments[s])})
    places = [(number, s) for number, record in enumerate(records) for s in range(len(record.segments))]
    segments = [
        {**(own[each][0] if len(own[each]) == 1 else {}), **_of_segment(records[each[0]].segments[each[1]])}
        for each in places
    ]
    return {"object": (objects, [number for number, _, _ in found]), "segment": (segments, [n for n, _ in places])}


def _of_segment(segment: SegmentRecord) -> dict[str, str]:
    return {"objects in the segment": str(len(segment.objects)), **segment.labels}


def _halves(thing: ObjectRecord) -> dict[str, str]:
    found, boxes = {}, [box for box in thing.boxes if box is not None]
    for axis, words in enumerate((("left", "right"), ("upper", "lower"))):
        sides = {box[axis] + box[axis + 2] > 1 for box in boxes}
        if len(sides) == 1:
            found[" or ".join(words)] = words[sides.pop()]
    return found
