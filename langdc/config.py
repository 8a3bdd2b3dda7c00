"""Settings: strict YAML into typed models, dotted overrides, and errors that name the path and the nearest key.

The models here are the vocabulary of every config file; `load` reads one.
"""

import importlib
import math
import re
import typing
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationError,
    field_validator,
    model_validator,
)

from langdc import jsonl
from langdc.configfiles import Dumper, read_tree
from langdc.registry import LIMIT, Registry, check_keywords, nearest
from langdc.watchdog import SECONDS

Model = TypeVar("Model", bound=BaseModel)

AUTO = "auto"
"""In place of a backbone's name: the one that the weights' own settings name."""

FeatureType = Literal["float32", "float16", "bfloat16", "float8"]
"""What encoder outputs may be kept as."""


class Settings(BaseModel):
    """Base of all config models: an unknown key is an error, values do not change after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    @field_validator("*", mode="wrap")
    @classmethod
    def _as_given(cls, given: Any, handler: Callable[[Any], Any]) -> Any:
        value = handler(given)
        _check_unchanged(given, value)
        return value


def _check_unchanged(given: Any, value: Any) -> None:
    """ValueError if reading changed what a value is: true is not 1, "yes" is not true, "" is no path."""
    if isinstance(given, list) and isinstance(value, list):
        for pair in zip(given, value, strict=True):
            _check_unchanged(*pair)
    elif isinstance(given, dict) and isinstance(value, dict):
        for name in value:
            _check_unchanged(given[name], value[name])
    elif isinstance(value, float) and not math.isfinite(value):
        raise ValueError("must be a finite number")
    elif isinstance(value, bool) != isinstance(given, bool) and isinstance(value, int | float):
        raise ValueError("must be true or false" if isinstance(value, bool) else "must be a number")
    elif isinstance(value, int) and abs(value) >= LIMIT:
        raise ValueError(f"must be less than {LIMIT}")
    elif isinstance(given, str) and isinstance(value, int | float) and re.match(r"\s*[-+]?0[0-9_]", given):
        raise ValueError("must be a number that does not begin with 0 (an octal one begins with 0o)")
    elif isinstance(value, Path) and str(given) == "":
        raise ValueError("must be a path, and is empty")


class MemberConfig(BaseModel):
    """One member of a zoo: its `name`, and the keyword arguments of its class, checked when it is built."""

    model_config = ConfigDict(extra="allow", frozen=True)

    name: str

    @property
    def settings(self) -> dict[str, Any]:
        """The keyword arguments."""
        return dict(self.model_extra or {})


def _named(value: Any) -> Any:
    return {"name": value} if isinstance(value, str) else value


def _as_backbone(value: Any) -> Any:
    """A string is the name of a backbone, or says where weights are; then their own settings say which backbone."""
    if not isinstance(value, str):
        return value
    is_name = value.isidentifier() and not Path(value).exists()
    return {"name": value} if is_name else {"name": AUTO, "source": value}


def _known_objective(member: MemberConfig) -> MemberConfig:
    # by name, since what is registered lies in rows above this one
    registry: Registry[Any] = importlib.import_module("langdc.train.objectives").objectives
    check_keywords(f"objective {member.name!r}", registry.get(member.name), member.settings)
    return member


Member = Annotated[MemberConfig, BeforeValidator(_named, json_schema_input_type=str | MemberConfig)]
"""A member of a zoo; a string is a name without settings."""
BackboneMember = Annotated[MemberConfig, BeforeValidator(_as_backbone, json_schema_input_type=str | MemberConfig)]
"""A backbone: a string is a name, a folder or a hub id."""


class ModelConfig(Settings):
    """What a model is made of."""

    backbone: BackboneMember
    """`name: auto` takes the backbone that the source's own settings name."""
    compressor: Member


class MethodConfig(Settings):
    """A method on a stock model, ready to ask with; which weights is said where it is used."""

    backbone: MemberConfig
    """The backbone's name and settings, without `source`."""
    frames: MemberConfig | None = None
    """Before encoding."""
    compressor: MemberConfig | None = None
    """Before the language model."""
    kv: MemberConfig | None = None
    """In its cache."""
    layers: MemberConfig | None = None
    """Between its layers."""

    @model_validator(mode="after")
    def _names_no_weights(self) -> "MethodConfig":
        if "source" in self.backbone.settings:
            raise ValueError("a method's backbone names no source; give the weights where it is used, as --model DIR")
        return self

    @property
    def arguments(self) -> dict[str, dict[str, Any]]:
        """Keywords of `VideoLM.from_pretrained`."""
        return {name: member.model_dump() for name, member in self if member is not None}


class LoraConfig(Settings):
    """A low-rank adapter on the language model."""

    rank: int = Field(128, gt=0)
    alpha: int = Field(256, gt=0)
    dropout: float = Field(0.05, ge=0, lt=1)
    targets: list[str] | Literal["all-linear"] = "all-linear"


class ValidationConfig(Settings):
    """Records that a run does not learn from, and what is measured on them while it trains."""

    data: list[Path] = []
    """Record files (JSON lines); none of their videos may be in the training data."""
    share: float | None = Field(None, gt=0, lt=1)
    """In place of files: this fraction of the training records, by whole videos, drawn by the seed."""
    every: int = Field(100, gt=0)
    """Steps between two measurements of the loss; there is one more at the end."""
    accuracy: bool = False
    """Whether the questions are also answered, and the replies scored."""
    patience: int | None = Field(None, gt=0)
    """End the run after this many measurements in a row without a lower loss; null never does."""

    @model_validator(mode="after")
    def _source(self) -> "ValidationConfig":
        if bool(self.data) == (self.share is not None):
            raise ValueError("give exactly one of data (record files) and share (a fraction of the training records)")
        return self


class DataConfig(Settings):
    """Records to learn from, and how often an epoch has them."""

    path: Path
    """A file of records, or a folder of such files (*.jsonl)."""
    cap: int | None = Field(default=None, gt=0)
    """At most this many of its records, drawn by seed."""
    repeat: float | None = Field(default=None, gt=0)
    """How often an epoch has each record; with 1.5 half of them twice, drawn anew every epoch, and the rest once."""
    weight: float | None = Field(default=None, gt=0)
    """Its share among the entries with a weight, which together have as many samples per epoch as records."""

    @model_validator(mode="after")
    def _one_of(self) -> "DataConfig":
        if self.repeat is not None and self.weight is not None:
            raise ValueError("give repeat or weight, not both: a weight says how often its records are drawn")
        return self

    @property
    def files(self) -> list[Path]:
        """Its record files; a path that is no folder counts as one."""
        return sorted(self.path.glob("*.jsonl")) if self.path.is_dir() else [self.path]


_TAGS = ("(path)", "(mapping)")
DataEntry = Annotated[
    Annotated[Path, Tag(_TAGS[0])] | Annotated[DataConfig, Tag(_TAGS[1])],
    Discriminator(lambda value: _TAGS[isinstance(value, dict | DataConfig)]),
]
"""A path, or a mapping that says more about it."""


class TrainConfig(Settings):
    """What is trained, on what, how long."""

    data: list[DataEntry] = Field(min_length=1)
    """Record files (JSON lines), folders of them, or mappings of `path`, `cap`, `repeat` and `weight`."""
    streaming: bool = False
    """Read and check each record when it is needed, where the files are larger than the memory."""
    group_by_length: bool = False
    """Make steps of samples with about the same number of tokens, so that less is padded."""
    packing: bool = False
    """Put several samples of a batch into one row of the language model, as far as the longest one leaves room."""
    quarantine: Path | None = None
    """Records to leave out, as `langdc data check` lists them."""
    allow_outside: bool = False
    """Whether media may be outside the folder of their record file."""
    kinds: list[str] | None = Field(None, min_length=1)
    """Only records (or questions) of these kinds; all when null."""
    steps: int | None = Field(None, gt=0, le=2**31 - 1)
    epochs: float | None = Field(None, gt=0)
    """Exactly one of the two."""
    trainable: list[str] = []
    """Glob patterns over parameter names; each must match at least one."""
    lora: LoraConfig | None = None
    """Adapters on the language model, which are trained as well."""
    compressor_lora: LoraConfig | None = None
    """Adapters on the language model inside the compressor, which are merged into it when the run is done."""
    targets: Literal["records", "none"] = "records"
    """What the compressor is given to learn from: what the records say (such as captions), or nothing, so that it
    works as in use."""
    batch_size: int = Field(8, gt=0)
    """Videos per process and step."""
    questions_per_video: int = Field(1, gt=0)
    """At most this many questions share one video in a step; the draw changes every epoch."""
    gradient_accumulation: int = Field(1, gt=0)
    learning_rate: float = Field(2e-4, gt=0)
    rates: dict[str, Annotated[float, Field(ge=0)]] = {}
    """Learning rates of their own, by glob pattern over parameter names; the first that matches counts."""
    warmup: float = Field(0.03, ge=0, lt=1)
    """Fraction of the steps."""
    schedule: str = "cosine"
    """A learning rate schedule of transformers, by name."""
    weight_decay: float = Field(0.0, ge=0)
    adam_beta2: float = Field(0.999, gt=0, lt=1)
    """Decay of AdamW's second moment; short runs want a smaller one."""
    clip: float = Field(1.0, gt=0)
    """Largest norm of the gradients."""
    ema: float | None = Field(None, gt=0, lt=1)
    """Decay of an exponential moving average of the trained tensors, such as 0.999; then it is what is saved."""
    validation: ValidationConfig | None = None
    """What is measured while the run trains, on records that it does not learn from."""

    @model_validator(mode="after")
    def _length(self) -> "TrainConfig":
        if (self.epochs is None) == (self.steps is None):
            raise ValueError("give exactly one of steps and epochs")
        return self

    @property
    def sets(self) -> list[DataConfig]:
        """The entries of `data`, all as mappings."""
        return [entry if isinstance(entry, DataConfig) else DataConfig(path=entry) for entry in self.data]

    @property
    def files(self) -> list[Path]:
        """All record files."""
        return [file for entry in self.sets for file in entry.files]


class WatchConfig(Settings):
    """Held-out videos that the compressor describes while it is trained."""

    data: Path
    """A record file with captions that the run does not learn from."""
    every: int = Field(100, gt=0)
    """Steps between two evaluations; there is one more at the end."""
    captions: int = Field(4, ge=0)
    """The captions of the first so many records are written down."""
    density: int = Field(32, ge=0)
    """Over so many records the lengths of captions are compared with the density of segments."""
    batch_size: int = Field(8, gt=0)
    """Videos described at a time."""


class RunConfig(Settings):
    """One training run."""

    stage: str | None = None
    """A label for logs and reports."""
    objective: Annotated[Member, AfterValidator(_known_objective)]
    """What is learned: a name, or a name with settings (`langdc.train.objectives`)."""
    loss_weights: dict[str, Annotated[float, Field(ge=0)]] = {}
    """Weights of the losses by name; 1 where none is given."""
    model: ModelConfig
    start: Path | None = None
    """Checkpoint directory of an earlier run, or sample:NAME; null starts from the published parts."""
    output: Path = Path("runs/run")
    """A new numbered directory is made when this one holds a finished run."""
    train: TrainConfig
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
    """ZeRO settings, a file beside this one or by name, such as deepspeed/zero2.json."""
    save_steps: int = Field(200, gt=0)
    keep_checkpoints: int = Field(2, gt=0)
    """The newest of them; with 1 there is none before it, should it be damaged."""
    verify_save: bool = False
    """Load what was saved in a fresh process and compare all tensors; only then the run counts as finished."""
    log_steps: int = Field(10, gt=0)
    workers: int = Field(0, ge=0)
    features: Path | None = None
    """Where encoder outputs are kept; null keeps them in memory for the run, if they fit."""
    feature_memory: float = Field(16.0, ge=0)
    """GB of them that a process keeps in memory at most; if a run has more, each step encodes its own videos."""
    features_dtype: FeatureType = "bfloat16"
    """What they are rounded to when kept; with the type that encoders compute in, nothing is rounded."""
    watchdog: float | None = Field(SECONDS, gt=0)
    """Seconds in which a process finishes nothing, after which it says where it is and ends; null waits for ever."""
    trackers: list[Literal["wandb", "tensorboard"]] = []
    watch: WatchConfig | None = None
    """For compressors that write text."""
    peak_flops: float | None = Field(None, gt=0)
    """Peak operations per second of one device, for the fraction that is used (mfu); null looks the device up."""


def load(kind: type[Model], path: str | Path, overrides: Iterable[str] = ()) -> Model:
    """Read a YAML file as a config model; `overrides` are "dotted.key=value" (value is YAML).

    A file may begin with `extends: other.yaml` (a path beside it): its keys are laid over the other's, lists replaced.
    Raises ValueError that lists every mistake at once, each with its path and, for unknown keys, the nearest one.
    """
    return check(kind, read_tree(path, overrides), str(path))


def check(kind: type[Model], tree: dict, where: str) -> Model:
    """Validate a tree of settings; ValueError as in `load`."""
    try:
        return kind.model_validate(tree)
    except ValidationError as error:
        lines = [_explain(kind, item) for item in error.errors()]
        raise ValueError(f"{where} has {len(lines)} mistake{'s' * bool(lines[1:])}:\n  " + "\n  ".join(lines)) from None


def save(config: BaseModel, path: Path) -> None:
    """Write the resolved settings; loading the file gives the same config."""
    jsonl.write_text(path, yaml.dump(config.model_dump(mode="json"), Dumper=Dumper, sort_keys=False))


def _explain(kind: type[BaseModel], item: Any) -> str:
    loc = tuple(part for part in item["loc"] if part not in _TAGS)
    path = ".".join(map(str, loc))
    if item["type"] == "extra_forbidden":
        parent = _model_at(kind, loc[:-1])
        hint = nearest(str(loc[-1]), parent.model_fields) if parent else ""
        return f"{path}: unknown key.{hint}"
    given = "" if item["type"] == "missing" or isinstance(item["input"], dict) else f" (given: {item['input']!r})"
    return f"{path}{': ' * bool(path)}{item['msg'].removeprefix('Value error, ')}{given}"


def _model_at(kind: type[BaseModel], loc: tuple) -> type[BaseModel] | None:
    current: type[BaseModel] | None = kind
    for part in loc:
        if not isinstance(part, int):
            field = current.model_fields.get(part) if current is not None else None
            current = _inner_model(field.annotation) if field is not None else None
    return current


def _inner_model(annotation: Any) -> type[BaseModel] | None:
    """The first config model in a type, such as that of `list[Model] | None`."""
    if inner := typing.get_args(annotation):
        return next(filter(None, map(_inner_model, inner)), None)
    return annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else None
