"""Settings of an evaluation: a task, the rows of its table, and sweeps that make rows."""

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from langdc.checkpoint import CARD, locate, read_card
from langdc.config import FeatureType, MemberConfig, Settings
from langdc.registry import nearest


def own_compressor(directory: Path) -> str | None:
    """The name of the compressor that a checkpoint was trained with; None for a stock model, or if nothing is there."""
    try:
        found = locate(directory)
    except ValueError:
        return None  # told when its row is asked
    return read_card(found)["model"]["compressor"]["name"] if (found / CARD).is_file() else None


class CalibrationConfig(Settings):
    """Videos on which budgets are set, so that none is set on what is being tested."""

    data: Path
    """A record file (JSON lines) of other videos than the task's, with questions."""
    videos: int = Field(32, gt=0)
    """Only the first so many."""


class PublishedConfig(Settings):
    """A published score of an uncompressed model: a run that misses it does not measure what others measured."""

    row: str
    """The row that should reach it."""
    score: float = Field(ge=0, le=100)
    """In percent."""
    tolerance: float = Field(1.0, ge=0)
    """Points by which the row may miss it either way."""
    source: str = Field(min_length=1)
    """Where it is printed."""
    kinds: list[str] | None = None
    """The kinds of question that it is about; null means those of the headline accuracy."""
    labels: dict[str, str] = Field(default={})
    """The labels of the questions that it is about."""


class JudgeConfig(Settings):
    """A language model behind an OpenAI-compatible endpoint that says whether open-ended replies are right."""

    url: str = Field(pattern=r"^https?://[^/]")
    """Where the interface begins, as https://backbone/v1; questions go to its /chat/completions."""
    model: str = Field(min_length=1)
    key_variable: str | None = None
    """The environment variable with the key; null sends none."""
    options: dict[str, Any] = Field(default={"temperature": 0, "max_tokens": 64})
    """What else a request says."""
    timeout: float = Field(60.0, gt=0)
    """Seconds of silence after which a request has failed."""
    retries: int = Field(4, ge=0)
    """How often a failed request is repeated."""
    pause: float = Field(1.0, ge=0)
    """Seconds before the first repetition; doubled for each further one."""
    workers: int = Field(8, gt=0)
    """Requests under way at once."""


class EvalConfig(Settings):
    """An evaluation: which models answer which task's questions."""

    task: MemberConfig
    rows: list["RowConfig"] = Field(default=[])
    sweep: "SweepConfig | None" = None
    """Rows for every method at every budget, after those above."""
    calibration: CalibrationConfig | None = None
    """Needed by rows whose budget is set to match another row's."""
    published: list[PublishedConfig] = Field(default=[])
    """Scores that the uncompressed models must meet, or the rows after them are marked as uncalibrated."""
    judge: JudgeConfig | None = None
    """Judges the replies to open-ended questions, after they are given."""
    output: Path
    batch_size: int = Field(8, gt=0)
    """Videos answered at once, each with all its questions."""
    max_new_tokens: int = Field(32, gt=0)
    limit: int | None = Field(None, gt=0)
    """Only the first so many videos."""
    timing_videos: int = Field(20, ge=0)
    """How many videos are timed alone (batch 1), after the warm-up."""
    warmup_videos: int = Field(3, ge=0)
    """The first videos, whose times do not count."""
    memory_gib: float = Field(4.0, gt=0)
    """Encoder outputs kept for the next row or model; what is dropped is decoded and encoded again."""
    features: Path | None = None
    """Where encoder outputs are kept that `data_prep/features.py` or a training made; videos that are there are not
    decoded and encoded again, and are not charged for it."""
    features_dtype: FeatureType = "bfloat16"
    """What those were rounded to when kept."""
    device: str | None = None
    """Where models run, as torch names it; null takes an accelerator if there is one."""
    reference: str | None = None
    """The row that the others are compared with."""
    seed: int = 0

    @model_validator(mode="after")
    def _rows_fit(self) -> "EvalConfig":
        rows = self.all_rows
        if not rows:
            raise ValueError("there is nothing to evaluate; give rows, or a sweep")
        names = [row.name for row in rows]
        if len(set(names)) < len(names):
            raise ValueError(f"row names must differ; given: {', '.join(names)}")
        if self.reference is not None and self.reference not in names:
            raise ValueError(f"reference is no row: {self.reference!r}.{nearest(self.reference, names)}")
        wanted = [published.row for published in self.published]
        if unknown := [name for name in wanted if name not in names]:
            raise ValueError(f"published: there is no row {unknown[0]!r}.{nearest(unknown[0], names)}")
        if len(set(wanted)) < len(wanted):
            raise ValueError(f"published: one score for a row; given: {', '.join(wanted)}")
        for number, row in enumerate(rows):
            if row.match is not None and row.match not in names[:number]:
                raise ValueError(f"row {row.name!r} matches {row.match!r}, which must be one of the rows before it")
            if row.calibrated and self.calibration is None:
                raise ValueError(
                    f"row {row.name!r} needs a budget that matches {row.match!r}; say on which other videos to set it, "
                    "such as calibration: {data: data/sample/train.jsonl}"
                )
        return self

    @property
    def judging(self) -> dict[str, Any]:
        """The settings that judge answers and change none."""
        return self.model_dump(mode="json", include={"published", "judge"})

    @property
    def all_rows(self) -> list["RowConfig"]:
        """The rows that are named, then those of the sweep."""
        return self.rows + (self.sweep.rows if self.sweep is not None else [])


class RowConfig(Settings):
    """One row of a table: a model, and optionally another compressor or control on it."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9 ._+%-]*$")
    """Names a file, too."""
    model: Path
    backbone: MemberConfig | None = None
    """For stock models: the backbone and its settings."""
    compressor: MemberConfig | None = None
    """Replaces the model's own compressor; where that is a trained pool, it works on the pool's tokens."""
    kv: MemberConfig | None = None
    """Drops keys in the language model's cache."""
    control: Literal["random_tokens", "random_tokens_mean", "uniform_frames", "caption_text"] | None = None
    match: str | None = None
    """The row whose cost this one has: a control copies its token counts; the `tokens` of `kv`, or else of
    `compressor`, are set such that the same is held in the cache, or read, on average."""
    limit: int | None = Field(None, gt=0)
    """Only the first so many videos, for slow rows; others are compared with it on these alone."""

    @property
    def calibrated(self) -> bool:
        """Whether its budget is set to match another row's."""
        return self.match is not None and self.control is None

    @model_validator(mode="after")
    def _parts_fit(self) -> "RowConfig":
        counted = self.control not in (None, "caption_text")
        if counted and self.match is None:
            raise ValueError("this control copies a token count; name the row that has it: match")
        if not counted and self.match is not None and (self.control or not (self.compressor or self.kv)):
            raise ValueError("match belongs to a compressor, a kv, or a control that copies a token count")
        if self.control is not None and self.kv is not None:
            raise ValueError("a control takes no kv; make it a row of its own")
        budgeted = self.kv or self.compressor
        given = {"keep", "tokens"} & set(budgeted.settings) if self.calibrated and budgeted else set()
        if given:
            raise ValueError(f"match sets the budget, so leave out {' and '.join(sorted(given))}")
        return self


class SweepModel(Settings):
    """A model that a sweep puts every method on; one trained with langdc is asked as it is, beside its own controls."""

    name: str = ""
    """Begins its rows' names; needed where there are several."""
    model: Path
    backbone: MemberConfig | None = None
    captions: Path | None = None
    """For one trained with langdc: the model that reads its captions as text, such as its stage 2; null is itself."""


class SweepMethod(Settings):
    """A method of a sweep: a compressor, a KV compressor, or one after the other, without a budget."""

    name: str | None = None
    compressor: MemberConfig | None = None
    kv: MemberConfig | None = None
    """Has the budget where both are given."""

    @model_validator(mode="before")
    @classmethod
    def _by_name(cls, given: Any) -> Any:
        if not isinstance(given, str):
            return given
        kind, name = ("kv", given.removeprefix("kv:")) if given.startswith("kv:") else ("compressor", given)
        return {kind: {"name": name}}

    @model_validator(mode="after")
    def _without_budget(self) -> "SweepMethod":
        budgeted = self.kv or self.compressor
        if budgeted is None:
            raise ValueError("a method is a compressor, a kv, or both; give a name such as vidcom2 or kv:pivotkv")
        if given := {"keep", "tokens"} & set(budgeted.settings):
            raise ValueError(f"the sweep sets the budget, so leave out {' and '.join(sorted(given))}")
        return self

    @property
    def label(self) -> str:
        """What its rows are called: its name, else what it is made of."""
        parts = [part for part in (self.compressor, self.kv) if part is not None]
        return self.name or " ".join(" ".join([p.name, *map(str, p.settings.values())]) for p in parts)

    def at(self, keep: float) -> dict[str, MemberConfig]:
        """Its parts with a budget."""
        parts = {"compressor": self.compressor, "kv": self.kv}
        last = "kv" if self.kv is not None else "compressor"
        return {
            kind: part.model_copy(update={"keep": keep}) if kind == last else part
            for kind, part in parts.items()
            if part is not None
        }


class SweepConfig(Settings):
    """Every method at every budget on every model, and what any of them has to beat beside them."""

    models: list[SweepModel] = Field(min_length=1)
    methods: list[SweepMethod] = Field(min_length=1)
    budgets: list[float] = Field(min_length=1)
    """Fractions kept."""
    controls: bool = True
    """Adds the uncompressed model, and random tokens, fewer frames and lower resolution at every budget; to a model
    trained with langdc its captions as text, and tokens of the first model trained with pool, as many as its own."""

    @model_validator(mode="after")
    def _names_differ(self) -> "SweepConfig":
        if len(self.models) > 1 and any(not model.name for model in self.models):
            raise ValueError("several models need names, which begin the names of their rows")
        if wrong := [budget for budget in self.budgets if not 0 < budget <= 1]:
            raise ValueError(f"budgets are fractions in (0, 1]; given: {', '.join(map(str, wrong))}")
        return self

    @property
    def rows(self) -> list[RowConfig]:
        """One row per model, method and budget; controls first."""
        learned = [model for model in self.models if own_compressor(model.model) == "langdc"]
        made = [self._learned(model) if model in learned else self._of(model) for model in self.models]
        return [row for rows in made for row in rows]

    def _learned(self, model: SweepModel) -> list[RowConfig]:
        """Its own row, and what that has to beat at its own number of tokens."""
        name = model.name or "langdc"
        backbone: dict[str, Any] = {"backbone": model.backbone}
        found = [RowConfig(name=name, model=model.model, **backbone)]
        if not self.controls:
            return found
        reads = model.captions or model.model
        found.append(RowConfig(name=f"{name} caption as text", model=reads, control="caption_text", **backbone))
        pool = next((other for other in self.models if own_compressor(other.model) == "pool"), None)
        if pool is not None:
            common = {"model": pool.model, "backbone": pool.backbone, "match": name}
            found.append(RowConfig(name=f"{name} random tokens", control="random_tokens", **common))
            found.append(RowConfig(name=f"{name} uniform frames", control="uniform_frames", **common))
        return found

    def _of(self, model: SweepModel) -> list[RowConfig]:
        common = {"model": model.model, "backbone": model.backbone}
        named = f"{model.name} ".lstrip()
        found = []
        if self.controls:
            found.append(RowConfig(name=f"{named}uncompressed", compressor=MemberConfig(name="identity"), **common))
        for keep in self.budgets:
            for method in self._controls() + self.methods:
                found.append(RowConfig(name=f"{named}{method.label} {100 * keep:g}%", **method.at(keep), **common))
        return found

    def _controls(self) -> list[SweepMethod]:
        if not self.controls:
            return []
        before = [("random tokens", {"name": "random"}), ("fewer frames", {"name": "uniform"})]
        before.append(("lower resolution", {"name": "uniform", "by": "resolution"}))
        found = [SweepMethod(name=name, compressor=MemberConfig(**settings)) for name, settings in before]
        if any(method.kv is not None for method in self.methods):
            found.append(SweepMethod(name="random keys", kv=MemberConfig(name="random")))
        return found


EvalConfig.model_rebuild()
