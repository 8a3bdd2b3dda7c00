"""Settings of an evaluation: a task, the entries that answer it, and sweeps that make entries."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from langdc import compat
from langdc.config import FeatureType, MemberConfig, Settings
from langdc.devices import Dtype
from langdc.endpoint import EndpointConfig
from langdc.evaluate.controls import UNIFORM
from langdc.evaluate.models import OwnCompressor
from langdc.registry import nearest
from langdc.tools.zoo import member_of
from langdc.watchdog import SECONDS

BUDGET = {"keep", "tokens"}


class _CalibrationConfig(Settings):
    """Videos on which budgets are set, so that none is set on what is being tested."""

    data: Path
    """A record file (JSON lines) of videos that are not the task's, with questions."""
    videos: int = Field(32, gt=0)
    """How many of them are used, from the first."""


class _PublishedConfig(Settings):
    """A published score of an uncompressed model, which the evaluation must reproduce to be comparable."""

    entry: str
    """The entry that should reach it."""
    score: float = Field(ge=0, le=100)
    """In percent."""
    tolerance: float = Field(1.0, ge=0)
    """Points by which the entry may miss it in either direction."""
    source: str = Field(min_length=1)
    """Where it is printed."""
    kinds: list[str] | None = None
    """The kinds of question that the score is about; null means those of the headline accuracy."""
    labels: dict[str, str] = Field(default={})
    """The labels of the questions that the score is about."""


class JudgeConfig(EndpointConfig):
    """A language model behind an OpenAI-compatible endpoint that judges replies to open-ended questions."""

    options: dict[str, Any] = Field(default={"temperature": 0, "max_tokens": 64})
    """Further fields of a request."""


class EntryConfig(Settings):
    """One entry of an evaluation: a model, and optionally another compressor or a control on it."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9 ._+%-]*$")
    """Also the name of a folder."""
    model: Path
    backbone: MemberConfig | None = None
    """For stock models: the backbone and its settings."""
    compressor: MemberConfig | None = None
    """Replaces the model's own compressor; on a trained pool it works on the pool's tokens."""
    layers: MemberConfig | None = None
    """Drops tokens between the language model's layers."""
    kv: MemberConfig | None = None
    """Drops keys in the language model's cache."""
    frames: MemberConfig | None = None
    """Chooses the frames that are read for each question."""
    control: (
        Literal[
            "random_tokens",
            "random_tokens_mean",
            "uniform_frames",
            "lower_resolution",
            "stride",
            "average_pooling",
            "caption_text",
        ]
        | None
    ) = None
    match: str | None = None
    """The entry whose cost this one has: random_tokens copies its counts video by video, other controls its mean; the
    `tokens` of `kv`, else the `keep` of `layers`, else the `tokens` of `compressor`, are set such that the same is held
    in the cache, or read, on average."""
    limit: int | None = Field(None, gt=0)
    """Ask about the first videos only, for slow entries; others are compared with it on these alone."""
    repeats: str | None = None
    """This entry is another run of that entry, with another seed; the report adds a table over seeds."""

    @property
    def calibrated(self) -> bool:
        """Whether its budget is set to match another entry's."""
        return self.match is not None and self.control is None

    @property
    def model_key(self) -> tuple[str, str]:
        """Equal for entries that one loaded model can serve."""
        return str(self.model), repr(self.backbone)

    @property
    def measure(self) -> str:
        """What its budget is measured in: "tokens" or "kv_bytes"."""
        return "kv_bytes" if self.kv or self.layers else "tokens"

    @property
    def budgeted(self) -> Literal["kv", "layers", "compressor"] | None:
        """The part that has the budget."""
        return "kv" if self.kv else "layers" if self.layers else "compressor" if self.compressor else None

    @model_validator(mode="after")
    def _parts_fit(self) -> "EntryConfig":
        counted = self.control not in (None, "caption_text")
        if counted and self.match is None:
            raise ValueError("this control copies a token count; name the entry that has it: match")
        if not counted and self.match is not None and (self.control or not self.budgeted):
            raise ValueError("match belongs to a compressor, layers, a kv, or a control that copies a token count")
        if self.control is not None and (self.layers or self.kv or self.frames):
            raise ValueError("a control takes no layers, kv or frames; make it an entry of its own")
        budgeted = getattr(self, self.budgeted or "compressor")
        given = BUDGET & set(budgeted.settings) if self.calibrated and budgeted else set()
        if given:
            raise ValueError(f"match sets the budget, so leave out {' and '.join(sorted(given))}")
        return self


_METHOD = ("backbone", "compressor", "layers", "kv", "frames", "control")
"""What an entry does with its model: the same in one that repeats it, but for seeds."""


def _without_seed(part: MemberConfig | str | None) -> Any:
    if not isinstance(part, MemberConfig):
        return part
    return {"name": part.name, **{name: value for name, value in part.settings.items() if name != "seed"}}


class _SweepModel(Settings):
    """A model that a sweep puts every method on; one with a learned compressor is asked as it is, beside controls."""

    name: str = ""
    """Begins its entries' names; needed where there are several models."""
    model: Path
    backbone: MemberConfig | None = None
    captions: Path | None = None
    """For one whose compressor writes text: the model that reads it as words, such as its stage 2; null is itself."""


class _SweepMethod(Settings):
    """A method of a sweep: a compressor, a layer or KV compressor, or one after the other, without a budget."""

    name: str | None = None
    compressor: MemberConfig | None = None
    layers: MemberConfig | None = None
    kv: MemberConfig | None = None
    """The last one given has the budget."""

    @model_validator(mode="after")
    def _without_budget(self) -> "_SweepMethod":
        budgeted = self.kv or self.layers or self.compressor
        if budgeted is None:
            raise ValueError("a method is compressor, layers or kv; give a name such as vidcom2, fastv or kv:random")
        if given := BUDGET & set(budgeted.settings):
            raise ValueError(f"the sweep sets the budget, so leave out {' and '.join(sorted(given))}")
        return self

    @property
    def label(self) -> str:
        """What its entries are called: its name, else what it is made of."""
        parts = [part for part in (self.compressor, self.layers, self.kv) if part is not None]
        return self.name or " ".join(" ".join([p.name, *map(str, p.settings.values())]) for p in parts)

    def at(self, keep: float) -> dict[str, MemberConfig]:
        """Its parts with a budget."""
        parts = {kind: part for kind in ("compressor", "layers", "kv") if (part := getattr(self, kind)) is not None}
        last = list(parts)[-1]
        return {**parts, last: parts[last].model_copy(update={"keep": keep})}


def _by_name(given: Any) -> Any:
    return member_of(given, {}) if isinstance(given, str) else given


CONTROLS = {
    "random tokens": {"compressor": {"name": "random"}},
    "fewer frames": {"compressor": {"name": "uniform"}},
    "lower resolution": {"compressor": {"name": "uniform", "by": "resolution"}},
    "stride": {"compressor": {"name": "uniform", "by": "stride"}},
    "average pooling": {"compressor": {"name": "uniform", "by": "pool"}},
    "random keys": {"kv": {"name": "random"}},
}
"""Controls at every budget; the last one beside methods inside the language model."""


class _SweepConfig(Settings):
    """Every method at every budget on every model, and the controls that each of them has to beat."""

    models: list[_SweepModel] = Field(min_length=1)
    methods: list[Annotated[_SweepMethod, BeforeValidator(_by_name, json_schema_input_type=str | _SweepMethod)]] = (
        Field(min_length=1)
    )
    """A string is the name of a compressor; kv: or layers: before it where several sites have one of that name."""
    budgets: list[float] = Field(min_length=1)
    """Fractions kept."""
    controls: bool = True
    """Adds the uncompressed model, and at every budget random tokens, fewer frames, lower resolution, stride and
    average pooling; to a model with a learned compressor its captions as words, if it writes any, and tokens of the
    first model trained with a pool, as many as its own."""

    @model_validator(mode="after")
    def _names_differ(self) -> "_SweepConfig":
        if len(self.models) > 1 and any(not model.name for model in self.models):
            raise ValueError("several models need names, which begin the names of their entries")
        if wrong := [budget for budget in self.budgets if not 0 < budget <= 1]:
            raise ValueError(f"budgets are fractions in (0, 1]; given: {', '.join(map(str, wrong))}")
        return self

    @property
    def entries(self) -> list[EntryConfig]:
        """One entry per model, method and budget; controls first."""
        own = [OwnCompressor.of(model.model) for model in self.models]
        pool = next((model for model, one in zip(self.models, own, strict=True) if one.grid), None)
        found: list[EntryConfig] = []
        for model, one in zip(self.models, own, strict=True):
            found += self._learned(model, one, pool) if one.learned and not one.grid else self._stock(model)
        return found

    def _learned(self, model: _SweepModel, own: OwnCompressor, pool: _SweepModel | None) -> Iterator[EntryConfig]:
        """Its own entry, and those that it has to beat at its own number of tokens."""
        name = model.name or str(own.name)
        common: dict[str, Any] = {"model": model.model, "backbone": model.backbone}
        yield EntryConfig(name=name, **common)
        if self.controls and own.writes:
            reads = {**common, "model": model.captions or model.model, "control": "caption_text"}
            yield EntryConfig(name=f"{name} caption as text", **reads)
        if self.controls and pool is not None:
            common = {"model": pool.model, "backbone": pool.backbone, "match": name}
            for control in ("random_tokens", "uniform_frames", *UNIFORM):
                common["control"] = control
                yield EntryConfig(name=f"{name} {control.replace('_', ' ')}", **common)

    def _stock(self, model: _SweepModel) -> Iterator[EntryConfig]:
        common: dict[str, Any] = {"model": model.model, "backbone": model.backbone}
        begin, methods = f"{model.name} ".lstrip(), self.methods
        if self.controls:
            yield EntryConfig(name=f"{begin}uncompressed", compressor=MemberConfig(name="identity"), **common)
            controls = [_SweepMethod(name=name, **parts) for name, parts in CONTROLS.items()]  # type: ignore[arg-type]
            inside = any(method.kv or method.layers for method in methods)
            methods = [*(controls if inside else controls[:-1]), *methods]
        for keep in self.budgets:
            for method in methods:
                yield EntryConfig(name=f"{begin}{method.label} {100 * keep:g}%", **{**common, **method.at(keep)})


class EvalConfig(Settings):
    """An evaluation: which models answer which task's questions."""

    task: MemberConfig
    entries: list[EntryConfig] = Field(default=[])
    sweep: _SweepConfig | None = None
    """Entries for every method at every budget, after those above."""
    calibration: _CalibrationConfig | None = None
    """Needed by entries whose budget is set to match another one's."""
    published: list[_PublishedConfig] = Field(default=[])
    """Scores that the uncompressed models must reach; otherwise later entries are marked as uncalibrated."""
    judge: JudgeConfig | None = None
    """Judges the replies to open-ended questions, after they are given."""
    output: Path
    batch_size: int = Field(8, gt=0)
    """Videos answered at once, each with all its questions."""
    max_new_tokens: int = Field(32, gt=0)
    limit: int | None = Field(None, gt=0)
    """Ask about the first videos only."""
    timing_videos: int = Field(20, ge=0)
    """How many videos are timed alone (batch 1), after the warm-up."""
    warmup_videos: int = Field(3, ge=0)
    """How many of the first videos are asked alone untimed."""
    memory_gib: float = Field(4.0, gt=0)
    """Encoder outputs held for the next entry or model; what is dropped is decoded and encoded again."""
    features: Path | None = None
    """A folder of encoder outputs that `langdc data features` or a training made; videos that are there are not
    decoded and encoded again, and are not charged for it."""
    features_dtype: FeatureType = "bfloat16"
    """The type in which those were stored."""
    watchdog: float | None = Field(SECONDS, gt=0)
    """Seconds in which a process finishes nothing, after which it says where it is and ends; null waits for ever."""
    device: str | None = "auto"
    """Where models run, as torch names it; auto, or null, takes an accelerator if there is one."""
    dtype: Dtype = "auto"
    """What weights are held in; auto is bfloat16 on an accelerator, and as the checkpoint says on a CPU."""
    reference: str | None = None
    """The entry that the others are compared with."""
    allow_outside: bool = False
    """Whether media may be outside the folder of the task's records, or of the benchmark."""
    seed: int = 0

    @model_validator(mode="before")
    @classmethod
    def _present_names(cls, given: Any) -> Any:
        return compat.settings(given)

    @model_validator(mode="after")
    def _entries_fit(self) -> "EvalConfig":
        entries = self.all_entries
        if not entries:
            raise ValueError("there is nothing to evaluate; give entries, or a sweep")
        names = [entry.name for entry in entries]
        if len(set(names)) < len(names):
            raise ValueError(f"names of entries must differ; given: {', '.join(names)}")
        if self.reference is not None and self.reference not in names:
            raise ValueError(f"reference is no entry: {self.reference!r}.{nearest(self.reference, names)}")
        published = [one.entry for one in self.published]
        if unknown := [name for name in published if name not in names]:
            raise ValueError(f"published: there is no entry {unknown[0]!r}.{nearest(unknown[0], names)}")
        if len(set(published)) < len(published):
            raise ValueError(f"published: one score for an entry; given: {', '.join(published)}")
        for index, entry in enumerate(entries):
            if entry.match is not None and entry.match not in names[:index]:
                raise ValueError(
                    f"entry {entry.name!r} matches {entry.match!r}, which must be one of the entries before it"
                )
            matched = next((other for other in entries[:index] if other.name == entry.match), None)
            if matched is not None and matched.measure == "kv_bytes" and entry.measure == "tokens":
                raise ValueError(
                    f"entry {entry.name!r} matches {matched.name!r}, which reads all tokens and saves bytes of the "
                    "cache; let it match an entry with a compressor alone, or give it layers or a kv"
                )
            if entry.calibrated and self.calibration is None:
                raise ValueError(
                    f"entry {entry.name!r} needs a budget that matches {entry.match!r}; say on which other videos to "
                    "set it, such as calibration: {data: data/sample/train.jsonl}"
                )
        repeats = {entry.name: entry.repeats for entry in entries if entry.repeats is not None}
        for name, first in repeats.items():
            if first not in names:
                raise ValueError(f"entry {name!r} repeats {first!r}, which is no entry.{nearest(first, names)}")
            if first in repeats:
                other = "itself" if first == name else f"{first!r}, which repeats another one"
                raise ValueError(f"entry {name!r} repeats {other}; name the entry with the first seed")
            self._check_repeat(*(entries[names.index(each)] for each in (name, first)))
        return self

    @staticmethod
    def _check_repeat(entry: EntryConfig, first: EntryConfig) -> None:
        what = f"entry {entry.name!r} repeats {first.name!r}"
        if all(getattr(entry, part) == getattr(first, part) for part in ("model", "match", *_METHOD)):
            raise ValueError(f"{what} with the same model and method; give the run with another seed as its model")
        pairs = [(part, *(_without_seed(getattr(one, part)) for one in (first, entry))) for part in _METHOD]
        if other := [f"{part} {now or 'none'} for {then or 'none'}" for part, then, now in pairs if then != now]:
            raise ValueError(f"{what} by another method ({', '.join(other)}); only model, match and seeds may differ")

    @property
    def judging(self) -> dict[str, Any]:
        """The settings that change no answer: they judge answers, or allow media."""
        return self.model_dump(mode="json", include={"published", "judge", "allow_outside"})

    @property
    def all_entries(self) -> list[EntryConfig]:
        """The entries that are named, then those of the sweep."""
        return self.entries + (self.sweep.entries if self.sweep is not None else [])
