"""The tables of names of version 0.1 and their present names; old ones are read with a warning until version 0.3."""

import re
import sys
from collections.abc import Collection, Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from langdc.log import get_logger

if TYPE_CHECKING:
    from torch import Tensor

logger = get_logger(__name__)

KEYS = {"host": "backbone", "most_side": "max_side", "reforge": "compact_positions", "most": "max_tokens"}
KEYS |= {"rows": "entries", "row": "entry"}  # of an evaluation
"""Keys of a config or of a checkpoint's settings, at any depth."""
ITEMS = {"saturated_guide": "saturated_question"}
"""Values in lists of a config, such as `defects`."""
OBJECTIVES = {"caption": "compress"}
"""Objectives by their names of 0.1."""
OF_PHASE = {"captioner_lora": "compressor_lora", "captions": "targets"}
"""Keys of a phase whose name changed; their place is now `train`."""
TARGETS = {"file": "records", "captioner": "none"}
"""Values of `targets`."""
TENSORS = (
    (re.compile(r"^host\."), "backbone."),
    (re.compile(r"^(compressor\.(?:.+\.)?(?:segment_marker|queries|frame|row|column|stream))$"), r"\1.weight"),
)
"""Patterns in names of tensors, also in `trainable` patterns."""
SPLIT = (
    (re.compile(r"^(compressor\..*attention\.)in_proj_(weight|bias)$"), (r"\1query.\2", r"\1key_value.\2"), (1, 2)),
)
"""Tensors that are several now: names of the parts, and the share of rows of each."""
NAMES = {
    "langdc.backbones": {"hosts": "backbones", "host_of": "backbone_of"},
    "langdc.backbones.base": {"hosts": "backbones", "host_of": "backbone_of"},
    "langdc.interfaces": {"Host": "Backbone", "LearnedCompressor": "TokenCompressor"},
}
"""Names of a module's members."""
ENTRY_POINTS = {"langdc.backbones": "langdc.hosts"}
"""Groups of entry points by their present name."""
_warned: set[str] = set()


def warn_once(old: str, new: str) -> None:
    """Warn once per process that an old name was read."""
    if old not in _warned:
        _warned.add(old)
        logger.warning("%r is the name of version 0.1; it is now %r. The old one is read until version 0.3.", old, new)


def settings(tree: Any, warn: bool = True) -> Any:
    """Settings of 0.1 under their present keys; others are unchanged."""
    if isinstance(tree, list):
        return [settings(item, warn) for item in tree]
    if not isinstance(tree, Mapping):
        return tree
    return {_present(KEYS, key) if warn else KEYS.get(key, key): settings(tree[key], warn) for key in tree}


def keywords(given: Mapping[str, Any], known: Collection[str]) -> dict[str, Any]:
    """Keyword arguments of a zoo's member under their present names; those that it has (`known`) stay."""

    def present(value: Any) -> Any:
        return [_present(ITEMS, item) for item in value] if isinstance(value, list) else value

    return {name if name in known else _present(KEYS, name): present(value) for name, value in given.items()}


def _present(table: Mapping[str, str], old: Any) -> Any:
    new = table.get(old, old) if isinstance(old, str) else old
    if new != old:
        warn_once(old, new)
    return new


def tensor_name(name: str) -> str:
    """The present name of a tensor of 0.1, or of a pattern over such names."""
    for pattern, new in TENSORS:
        name = pattern.sub(new, name)
    return name


def tensors(found: "Mapping[str, Tensor]", known: Collection[str] = ()) -> "dict[str, Tensor]":
    """Tensors of a checkpoint of 0.1 under their present names; those of `known` names are unchanged."""
    present: dict[str, Any] = {}
    for name, tensor in found.items():
        present |= {name: tensor} if name in known else _split(tensor_name(name), tensor)
    return present


def _split(name: str, tensor: "Tensor") -> "dict[str, Tensor]":
    for pattern, parts, shares in SPLIT:
        if pattern.match(name):
            rows = [len(tensor) * share // sum(shares) for share in shares]
            return {pattern.sub(p, name): rest.clone() for p, rest in zip(parts, tensor.split(rows), strict=True)}
    return {name: tensor}


def runs_of_stage(tree: Mapping[str, Any]) -> list[dict[str, Any]] | None:
    """The runs that replace the phases of a stage of 0.1, each starting from the one before; None if it is one run.

    The last one has the stage's output; the others' are in its folder `phases`, where 0.1 had them.
    """
    if "phases" not in tree:
        return None
    warn_once("phases", "one file per run, and a chain.yaml that lists them")
    phases = tree["phases"]
    if not (isinstance(phases, list) and phases and all(isinstance(phase, Mapping) for phase in phases)):
        raise ValueError(f"phases: {phases!r} is not a list of mappings of keys to values, one for each run.")
    kept = {key: tree[key] for key in tree if key not in ("phases", "objective", "train")}
    common = settings(kept, warn=False)  # one warning is enough
    output, start = Path(common.get("output", "runs/stage")), common.get("start")
    runs = []
    for number, phase in enumerate(tree["phases"], 1):
        last = number == len(tree["phases"])
        place = output if last else output / "phases" / str(phase.get("name", number))
        runs.append({**common, **_run_of_phase(phase), "start": start, "output": str(place)})
        start = str(place)
    return runs


def _run_of_phase(phase: Mapping[str, Any]) -> dict[str, Any]:
    train = {"questions_per_video": 8, **{OF_PHASE.get(key, key): value for key, value in phase.items()}}
    if "targets" in train:
        train["targets"] = TARGETS.get(train["targets"], train["targets"])
    train["trainable"] = [tensor_name(pattern) for pattern in train.get("trainable", [])]
    if (rate := train.pop("projector_learning_rate", None)) is not None:
        train["rates"] = {"*projector*": rate}
    name = str(train.pop("objective", None))
    objective = {"name": OBJECTIVES.get(name, name)}
    if (text := train.pop("segment_text", None)) is not None:
        objective["segment_text"] = text
    train.pop("name", None)
    return {"objective": objective, "train": train}


def member(module: str, name: str) -> Any:
    """What a module's `__getattr__` gives for a name of 0.1; AttributeError for any other."""
    new = NAMES.get(module, {}).get(name)
    if new is None:
        raise AttributeError(f"module {module!r} has no attribute {name!r}")
    warn_once(f"{module}.{name}", f"{module}.{new}")
    present = getattr(sys.modules[module], new)
    return _learned(present) if name == "LearnedCompressor" else present


def alias(old: str, new: str) -> None:
    """Let a package's modules be imported by its name of 0.1 as well."""
    warn_once(old, new)
    for name in [name for name in sys.modules if name.startswith(f"{new}.")]:
        sys.modules[f"{old}{name.removeprefix(new)}"] = sys.modules[name]


@cache
def _learned(base: type) -> type:
    """LearnedCompressor of 0.1, whose `forward` compressed one video and whose `batch` several."""
    from langdc.types import Compressed

    class LearnedCompressor(base):
        """Members that were written for 0.1 work as they are, without losses of their own."""

        def __init_subclass__(cls, **settings: Any) -> None:
            super().__init_subclass__(**settings)
            if "forward" in vars(cls) and "batch" not in vars(base):
                cls.one, cls.forward = cls.forward, LearnedCompressor.forward

        def batch(self, videos: list) -> list:
            return [self.one(video) for video in videos]

        def forward(self, videos: list, context: Any = None) -> Any:
            wanted = context is None or "tokens" in context.wanted
            return Compressed(self.batch(videos) if wanted else [])

    return LearnedCompressor
