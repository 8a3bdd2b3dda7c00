"""Settings: strict YAML into typed models, dotted overrides, and errors that name the path and the nearest key.

The models here are the vocabulary of every config file; `load` reads one.
"""

import types
import typing
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from langdc.jsonl import write_text
from langdc.registry import nearest

Model = TypeVar("Model", bound=BaseModel)

FeatureType = Literal["float32", "float16", "bfloat16", "float8"]
"""What encoder outputs may be kept as."""


class Settings(BaseModel):
    """Base of all config models: an unknown key is an error, values do not change after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class MemberConfig(BaseModel):
    """One member of a zoo: its `name`, and the keyword arguments of its class, checked when it is built."""

    model_config = ConfigDict(extra="allow", frozen=True)

    name: str

    @property
    def settings(self) -> dict[str, Any]:
        """The keyword arguments."""
        return dict(self.model_extra or {})


class ModelConfig(Settings):
    """What a model is made of."""

    backbone: MemberConfig
    compressor: MemberConfig


class MethodConfig(Settings):
    """A method on a stock model, ready to ask with; which weights is said where it is used."""

    backbone: MemberConfig
    """The backbone's name and settings, without `source`."""
    compressor: MemberConfig | None = None
    """Before the language model."""
    kv: MemberConfig | None = None
    """In its cache."""

    @model_validator(mode="after")
    def _names_no_weights(self) -> "MethodConfig":
        if "source" in self.backbone.settings:
            raise ValueError("a method's backbone names no source; give the weights where it is used, as --model DIR")
        return self

    @property
    def arguments(self) -> dict[str, dict[str, Any]]:
        """Keywords of `VideoLM.from_pretrained`."""
        members = {"backbone": self.backbone, "compressor": self.compressor, "kv": self.kv}
        return {name: member.model_dump() for name, member in members.items() if member is not None}


class LoraConfig(Settings):
    """A low-rank adapter on the language model."""

    rank: int = Field(128, gt=0)
    alpha: int = Field(256, gt=0)
    dropout: float = Field(0.05, ge=0, lt=1)
    targets: list[str] | Literal["all-linear"] = "all-linear"


class PhaseConfig(Settings):
    """One training run of a stage: what is trained, on what, how long."""

    name: str
    objective: Literal["caption", "align", "answer"]
    """caption: the captioner learns the segments' target captions. align: the post-projector is set to the best
    linear map onto the language model's embeddings of the captions' words. answer: the replies are learned."""
    data: list[Path] = Field(min_length=1)
    """Record files (JSON lines)."""
    kinds: list[str] | None = None
    """Only records (or questions) of these kinds; all when null."""
    trainable: list[str] = Field(min_length=1)
    """Glob patterns over parameter names; each must match at least one."""
    lora: LoraConfig | None = None
    captioner_lora: LoraConfig | None = None
    """Train the captioner through adapters, which are merged into it when the phase is done."""
    segment_text: str | None = None
    """For the align objective: what the language model would read before segment {number} in place of its marker."""
    captions: Literal["file", "captioner"] = "file"
    """Where the answer objective takes captions from: the records, or the frozen captioner, which writes them once."""
    epochs: float | None = Field(None, gt=0)
    steps: int | None = Field(None, gt=0)
    batch_size: int = Field(8, gt=0)
    """Videos per process and step."""
    questions_per_video: int = Field(8, gt=0)
    """At most this many questions share one video in a step; the draw changes every epoch."""
    gradient_accumulation: int = Field(1, gt=0)
    learning_rate: float = Field(2e-4, gt=0)
    projector_learning_rate: float | None = Field(None, gt=0)
    """For projectors when they need another rate than the rest."""
    warmup: float = Field(0.03, ge=0, lt=1)
    """Share of the steps."""
    schedule: str = "cosine"
    """A learning rate schedule of transformers, by name."""
    weight_decay: float = Field(0.0, ge=0)
    adam_beta2: float = Field(0.999, gt=0, lt=1)
    """Memory of AdamW's second moment; short runs want a shorter one."""
    clip: float = Field(1.0, gt=0)

    @model_validator(mode="after")
    def _length(self) -> "PhaseConfig":
        if (self.epochs is None) == (self.steps is None):
            raise ValueError("give exactly one of epochs and steps")
        return self


class WatchConfig(Settings):
    """Videos kept aside that the captioner describes while it learns."""

    data: Path
    """A record file with captions that no phase learns from."""
    every: int = Field(100, gt=0)
    """Steps between two looks; there is one more at the end."""
    captions: int = Field(4, ge=0)
    """Of so many records, the first, the captions are written down."""
    density: int = Field(32, ge=0)
    """Over so many records the lengths of captions are compared with the density of segments."""
    batch_size: int = Field(8, gt=0)
    """Videos described at a time."""


class StageConfig(Settings):
    """A training stage: the model, what it starts from, and its phases one after the other."""

    stage: Literal["stage1", "stage2", "stage3"]
    model: ModelConfig
    start: Path | None = None
    """Checkpoint directory of the earlier stage; null starts from the published parts."""
    output: Path = Path("runs/stage")
    """A new numbered directory is made when this one holds a finished run."""
    phases: list[PhaseConfig] = Field(min_length=1)
    seed: int = 0
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    tf32: bool = False
    """Let an accelerator round the factors of float32 products to 10 bits of mantissa."""
    attention: str | None = None
    """Attention kernel of every transformers part; null leaves what the model's settings say, "auto" takes flash-attn
    where it is installed and can be used."""
    liger: bool | Literal["auto"] = False
    """Fused norms and feed-forward layers from the package liger-kernel; "auto" takes them where they can be used."""
    gradient_checkpointing: bool = False
    deepspeed: Path | None = None
    """ZeRO settings file (configs/deepspeed/*.json)."""
    save_steps: int = Field(200, gt=0)
    keep_checkpoints: int = Field(1, gt=0)
    verify_save: bool = True
    """After each phase a fresh process loads what was saved and compares all tensors and one vector of logits; only
    then the phase counts as finished."""
    log_steps: int = Field(10, gt=0)
    workers: int = Field(0, ge=0)
    features: Path | None = None
    """Where encoder outputs are kept; null keeps them in memory for the run, if they fit."""
    feature_memory: float = Field(16.0, ge=0)
    """GB of them that a process keeps in memory at most; if a phase has more, each step encodes its own videos."""
    features_dtype: FeatureType = "bfloat16"
    """What they are rounded to when kept; with the type that encoders compute in, nothing is rounded."""
    watchdog: float | None = Field(1800.0, gt=0)
    """Seconds without a finished step after which every process says where it is and ends; null waits for ever."""
    trackers: list[Literal["wandb", "tensorboard"]] = []
    watch: WatchConfig | None = None
    """In phases of the caption objective."""
    peak_flops: float | None = Field(None, gt=0)
    """Operations per second of one device at best, for the share that is used (mfu); null looks the device up."""


def load(kind: type[Model], path: str | Path, overrides: Iterable[str] = ()) -> Model:
    """Read a YAML file as a config model; `overrides` are "dotted.key=value" (value is YAML).

    A file may begin with `extends: other.yaml` (a path beside it): its keys are laid over the other's, lists replaced.
    Raises ValueError that lists every mistake at once, each with its path and, for unknown keys, the nearest one.
    """
    tree = _read(Path(path))
    for override in overrides:
        _set(tree, override)
    return check(kind, tree, str(path))


def _read(path: Path, readers: tuple[Path, ...] = ()) -> dict:
    if not path.is_file():
        wanted = f", which {readers[-1]} extends" if readers else ""
        raise ValueError(f"There is no config file {path}{wanted}. See configs/ for those that ship.")
    if path.resolve() in readers:
        raise ValueError(f"{path} extends itself, by way of {readers[-1]}.")
    try:
        tree = yaml.safe_load(path.read_text()) or {}
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not valid YAML: {error}") from error
    if not isinstance(tree, dict):
        raise ValueError(f"{path} holds a {type(tree).__name__}; a config file is a mapping of keys to values.")
    if "extends" not in tree:
        return tree
    below = _read(path.parent / tree.pop("extends"), (*readers, path.resolve()))
    return _lay_over(below, tree)


def _lay_over(below: dict, above: dict) -> dict:
    merged = dict(below)
    for key, value in above.items():
        both = isinstance(value, dict) and isinstance(below.get(key), dict)
        # another member of a zoo takes other settings, so nothing of the old one may stay
        other = both and "name" in value and value["name"] != below[key].get("name")
        merged[key] = _lay_over(below[key], value) if both and not other else value
    return merged


def check(kind: type[Model], tree: dict, where: str) -> Model:
    """Validate a tree of settings; ValueError as in `load`."""
    try:
        return kind.model_validate(tree)
    except ValidationError as error:
        lines = [_explain(kind, item) for item in error.errors()]
        raise ValueError(f"{where} has {len(lines)} mistake(s):\n  " + "\n  ".join(lines)) from None


def save(config: BaseModel, path: Path) -> None:
    """Write the resolved settings; loading the file gives the same config."""
    write_text(path, yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False))


def _set(tree: dict, override: str) -> None:
    key, equals, value = override.partition("=")
    if not equals or not key:
        raise ValueError(f"Override {override!r} is not of the form dotted.key=value.")
    *parents, last = key.split(".")
    node: Any = tree
    for number, parent in enumerate(parents):
        node = _step(node, parent, ".".join(parents[: number + 1]))
    if isinstance(node, list):
        node[_index(node, last, key)] = yaml.safe_load(value)
    else:
        node[last] = yaml.safe_load(value)


def _step(node: Any, key: str, path: str) -> Any:
    if isinstance(node, list):
        return node[_index(node, key, path)]
    if node.get(key) is None:
        node[key] = {}
    if not isinstance(node[key], dict | list):
        raise ValueError(f"Override path {path!r} goes through the value {node[key]!r}, which has no keys.")
    return node[key]


def _index(node: list, key: str, path: str) -> int:
    """A list item by number or by its `name`."""
    names = [item.get("name") for item in node if isinstance(item, dict)]
    if key in names:
        return names.index(key)
    if key.isdigit() and int(key) < len(node):
        return int(key)
    raise ValueError(
        f"Override path {path!r}: the list has no item {key!r}; items 0 to {len(node) - 1}, names {names}."
    )


def _explain(kind: type[BaseModel], item: Any) -> str:
    path = ".".join(str(part) for part in item["loc"])
    if item["type"] == "extra_forbidden":
        parent = _model_at(kind, item["loc"][:-1])
        hint = nearest(str(item["loc"][-1]), parent.model_fields) if parent else ""
        return f"{path}: unknown key.{hint}"
    given = f" (given: {item['input']!r})" if item["type"] != "missing" else ""
    return f"{path}: {item['msg']}{given}"


def _model_at(kind: type[BaseModel], loc: tuple) -> type[BaseModel] | None:
    current: Any = kind
    for part in loc:
        if isinstance(part, int):
            continue
        if not (isinstance(current, type) and issubclass(current, BaseModel)) or part not in current.model_fields:
            return None
        current = _inner_model(current.model_fields[part].annotation)
    return current if isinstance(current, type) and issubclass(current, BaseModel) else None


def _inner_model(annotation: Any) -> Any:
    if isinstance(annotation, types.UnionType) or typing.get_origin(annotation) is not None:
        found = (_inner_model(inner) for inner in typing.get_args(annotation))
        return next((model for model in found if isinstance(model, type) and issubclass(model, BaseModel)), None)
    return annotation
