"""The scenes of the sample videos and their captions. A video is a list of segments; a segment holds 0 to 4 objects of
distinct colours. Captions, questions and frames (`langdc.sample.render`) are made from this ground truth. Captions say
colour, shape and motion, with `places` also where an object is; never its size and shade, when it appears, and the
background.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

COLOURS = {
    "red": (225, 45, 40),
    "green": (40, 180, 60),
    "blue": (50, 80, 230),
    "yellow": (235, 215, 50),
    "purple": (170, 60, 200),
    "cyan": (60, 210, 220),
}
SHAPES = ("square", "ring", "triangle", "cross")
MOTIONS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1), "still": (0, 0)}
BACKGROUNDS = {  # colour, and how far its level is moved at most
    "grey": ((128, 128, 128), 48),
    "black": ((35, 35, 35), 20),
    "white": ((220, 220, 220), 20),
    "brown": ((110, 80, 50), 20),
}
RADII = (5, 9)  # of objects in pixels, both included
SHADES = (-0.3, 0.3)  # how far a colour is moved to black (below 0) or white
LATEST = 1  # the last frame of a segment (0-based) in which an object may appear
SIZE = 64
SPEED = 3  # pixels per frame
FPS = 8
SEGMENTS = 4
FRAMES_PER_SEGMENT = 4
MAX_OBJECTS = 4


@dataclass(frozen=True)
class Thing:
    """One coloured object of a segment.

    `x`, `y` is its centre in the segment's first frame and `radius` half its side, in pixels; `shade` as in `SHADES`;
    it is seen from the frame `start` of the segment on.
    """

    colour: str
    shape: str
    motion: str
    x: int
    y: int
    radius: int = 7
    shade: float = 0.0
    start: int = 0

    @property
    def shown(self) -> int:
        """In how many frames of its segment it is seen."""
        return FRAMES_PER_SEGMENT - self.start

    def centre(self, frame: int) -> tuple[int, int]:
        """The object's centre in a frame (0-based) of its segment, in pixels."""
        dx, dy = MOTIONS[self.motion]
        return self.x + dx * SPEED * frame, self.y + dy * SPEED * frame

    @property
    def place(self) -> str:
        """The quarter of the frame where the middle of its path is: "upper left" to "lower right"."""
        (x0, y0), (x1, y1) = self.centre(0), self.centre(FRAMES_PER_SEGMENT - 1)
        return f"{'upper' if y0 + y1 < SIZE - 1 else 'lower'} {'left' if x0 + x1 < SIZE - 1 else 'right'}"

    def swept_box(self) -> tuple[int, int, int, int]:
        """The pixels that the object touches in its segment: left, top, right, bottom, inclusive."""
        (x0, y0), (x1, y1) = self.centre(0), self.centre(FRAMES_PER_SEGMENT - 1)
        r = self.radius
        return min(x0, x1) - r, min(y0, y1) - r, max(x0, x1) + r, max(y0, y1) + r


@dataclass(frozen=True)
class Segment:
    """The things of a segment, in the order of its caption, and the ground that they are seen on."""

    things: tuple[Thing, ...] = ()
    background: str = "grey"

    def __iter__(self) -> Iterator[Thing]:
        return iter(self.things)

    def __len__(self) -> int:
        return len(self.things)


def sample_segment(rng: np.random.Generator, objects: int | None = None, varied: bool = True) -> Segment:
    """Draw `objects` things (None: 0 to 4 at random), placed by rejection so that no swept boxes overlap.

    Without `varied` all have one size and plain colours, appear in the first frame, and are on grey.
    """
    count = int(rng.integers(0, MAX_OBJECTS + 1)) if objects is None else objects
    things = None
    while things is None:
        colours = rng.choice(len(COLOURS), size=count, replace=False)
        things = _place(rng, [list(COLOURS)[i] for i in sorted(colours)], varied)
    return Segment(things, list(BACKGROUNDS)[rng.integers(len(BACKGROUNDS)) if varied else 0])


def _place(rng: np.random.Generator, colours: list[str], varied: bool) -> tuple[Thing, ...] | None:
    placed: list[Thing] = []
    for colour in colours:
        shape = SHAPES[rng.integers(len(SHAPES))]
        motion = list(MOTIONS)[rng.integers(len(MOTIONS))]
        looks = _looks(rng) if varied else {}
        radius = looks.get("radius", Thing.radius)
        for _ in range(40):
            x, y = (int(v) for v in rng.integers(radius, SIZE - radius, size=2))
            thing = Thing(colour, shape, motion, x, y, **looks)
            box = thing.swept_box()
            inside = min(box) >= 0 and max(box) < SIZE
            if inside and not any(_overlap(thing, other) for other in placed):
                placed.append(thing)
                break
        else:
            return None
    return tuple(placed)


def _looks(rng: np.random.Generator) -> dict[str, Any]:
    return {
        "radius": int(rng.integers(RADII[0], RADII[1] + 1)),
        "shade": round(float(rng.uniform(*SHADES)), 2),
        "start": int(rng.integers(LATEST + 1)),
    }


def _overlap(one: Thing, two: Thing) -> bool:
    a, b = one.swept_box(), two.swept_box()
    return a[0] <= b[2] and b[0] <= a[2] and a[1] <= b[3] and b[1] <= a[3]


def sample_video(rng: np.random.Generator, segments: int = SEGMENTS) -> list[Segment]:
    """Draw the segments of one video, independently of each other."""
    return [sample_segment(rng) for _ in range(segments)]


def caption(segment: Segment, motions: bool = True, places: bool = False) -> str:
    """The caption of a segment, colours in palette order: "red square left ; blue ring still"; "" when it is empty.
    Without `motions`, that of a single frame. With `places`: "red square left upper right ; ...".
    """
    return " ; ".join(" ".join([t.colour, t.shape, *[t.motion] * motions, *[t.place] * places]) for t in segment)


def as_text(captions: list[str]) -> str:
    """A video's captions as one text: "[1] red square left [2] [3] ..."."""
    return " ".join(f"[{number}] {text}".rstrip() for number, text in enumerate(captions, 1))
