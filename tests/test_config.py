"""Settings: strict, all mistakes at once, overrides, configs by name, and a saved config that loads equal."""

import json
import math
import re
from pathlib import Path

import pydantic
import pytest
import yaml
from pydantic import ValidationError

import langdc.encoders.internvideo2  # noqa: F401  (its settings)
from langdc.config import MemberConfig, ModelConfig, RunConfig, Settings, check, load, save
from langdc.configfiles import SHIPPED, _shipped_configs, find_config, parse_yaml
from langdc.evaluate.settings import EvalConfig
from langdc.tools.schema import schema
from langdc.train import chain

TRAIN = {"data": ["train.jsonl"], "trainable": ["compressor.*"], "steps": 10}
RUN = {
    "objective": "compress",
    "model": {"backbone": {"name": "videogpt_plus"}, "compressor": {"name": "pool", "sides": [2, 2]}},
    "train": TRAIN,
}

# what PyYAML passes Python's own errors on for
BAD_VALUES = (
    "2001-99-99",
    "!!int x",
    "!!bool maybe",
    "!!timestamp x",
    "!!float",
    "!!int ''",
    "{[a]: 1}",
    "*x",
    "!!x 1",
    # values that hold themselves
    "&x [*x]",
    "&x {a: [*x]}",
)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "stage2.yaml"
    path.write_text(yaml.safe_dump(RUN))
    return path


def mistakes(tree: dict) -> list[str]:
    with pytest.raises(ValueError) as caught:
        check(RunConfig, tree, "stage2.yaml")
    head, *lines = str(caught.value).splitlines()
    assert head == f"stage2.yaml has {len(lines)} mistake{'s' * (len(lines) > 1)}:"
    return [line.strip() for line in lines]


def test_all_mistakes_come_at_once_with_path_and_nearest_key():
    tree = {
        **RUN,
        "trian": {},
        "seed": "many",
        "objective": "anser",
        "model": {**RUN["model"], "compresor": {}},
        "train": {**TRAIN, "lerning_rate": 1, "batch_size": 0},
    }
    found = mistakes(tree)
    assert len(found) == 6
    for wanted in (
        "trian: unknown key. Did you mean 'train'?",
        "model.compresor: unknown key. Did you mean 'compressor'?",
        "train.lerning_rate: unknown key. Did you mean 'learning_rate'?",
    ):
        assert any(line.startswith(wanted) for line in found), (wanted, found)
    assert any(line.startswith("seed:") and "given: 'many'" in line for line in found)
    assert any(line.startswith("train.batch_size:") and "given: 0" in line for line in found)
    assert any(line.startswith("objective:") and "Did you mean 'answer'?" in line for line in found)


def test_a_key_below_an_optional_model_is_explained_too():
    (line,) = mistakes({**RUN, "train": {**TRAIN, "lora": {"rang": 4}}})
    assert line.startswith("train.lora.rang: unknown key. Did you mean 'rank'?")


def test_missing_and_forbidden_values_are_named():
    tree = {key: value for key, value in RUN.items() if key != "train"}
    found = mistakes({**tree, "precision": "float8"})
    assert any(line == "train: Field required" for line in found)
    assert any(line.startswith("precision:") and "float8" in line for line in found)


def test_settings_of_an_objective_are_checked_when_the_file_is_read():
    (line,) = mistakes({**RUN, "objective": {"name": "distill", "temprature": 2}})
    assert "has no setting 'temprature'" in line and "Did you mean 'temperature'?" in line
    config = check(RunConfig, {**RUN, "objective": {"name": "distill", "temperature": 2}}, "x")
    assert config.objective == MemberConfig(name="distill", temperature=2)


@pytest.mark.parametrize("length", [{"steps": None}, {"steps": 3, "epochs": 1}])
def test_a_run_has_exactly_one_length(length: dict):
    (line,) = mistakes({**RUN, "train": {**TRAIN, **length}})
    assert "exactly one of steps and epochs" in line


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, "nan", "1e400"])
def test_a_number_of_no_settings_is_nan_or_infinite(value: object):
    """All config models, with any value for each field whose type has a number in it."""
    kinds, checked = [Settings], set()
    for kind in kinds:
        kinds += kind.__subclasses__()
        for name, field in kind.model_fields.items():
            if re.search(r"\b(float|int)\b", str(field.annotation)):
                with pytest.raises(ValidationError) as caught:
                    kind.model_validate({name: value})
                assert name in [error["loc"][0] for error in caught.value.errors() if error["loc"]], (kind, name)
                checked.add(name)
    assert checked >= {"learning_rate", "seed", "init_scale", "repeat", "tolerance", "watchdog"}


def test_settings_do_not_change_after_loading(file: Path):
    config = load(RunConfig, file)
    with pytest.raises(ValueError, match="frozen"):
        config.seed = 3


def test_members_keep_their_keyword_arguments(file: Path):
    assert load(RunConfig, file).model.compressor.settings == {"sides": [2, 2]}
    assert MemberConfig(name="pool").settings == {}


def test_a_string_names_a_member_or_says_where_the_weights_of_a_backbone_are(tmp_path: Path):
    def built(backbone: str) -> MemberConfig:
        return check(ModelConfig, {"backbone": backbone, "compressor": "identity"}, "x").backbone

    assert built("qwen2_5_vl") == MemberConfig(name="qwen2_5_vl")
    for source in ("Qwen/Qwen2.5-VL-7B-Instruct", str(tmp_path), "tiny:qwen2_5_vl"):
        assert built(source) == MemberConfig(name="auto", source=source)
    assert check(RunConfig, {**RUN, "objective": "answer"}, "x").objective == MemberConfig(name="answer")


def test_overrides_are_dotted_and_hold_yaml(file: Path):
    changed = load(
        RunConfig,
        file,
        [
            "train.learning_rate=1.0e-3",
            "train.steps=7",
            "train.lora.rank=4",
            "model.compressor.sides=[4, 4]",
            "train.data.0=other.jsonl",
            "start=runs/one",
        ],
    )
    assert changed.train.learning_rate == 1e-3 and changed.train.steps == 7
    assert changed.train.lora is not None and changed.train.lora.rank == 4
    assert changed.model.compressor.settings == {"sides": [4, 4]}
    assert changed.train.data == [Path("other.jsonl")] and changed.start == Path("runs/one")


@pytest.mark.parametrize("written", ["1e-3", "1.0e-3", "0.001", "'1e-3'"])
def test_numbers_may_be_written_as_people_write_them(file: Path, written: str):
    """YAML reads 1e-3 as text; a number is wanted and a number it becomes."""
    changed = load(RunConfig, file, [f"train.learning_rate={written}", f"train.rates={{a: {written}}}"])
    assert changed.train.learning_rate == 1e-3 and changed.train.rates == {"a": 1e-3}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("seed", "is not of the form dotted.key=value"),
        ("=3", "is not of the form dotted.key=value"),
        ("train.data.2=x", "no item '2'; items 0 to 0"),
        ("objective.name=x", "goes through the value 'compress'"),
        ("sed=3", "sed: unknown key. Did you mean 'seed'"),
        ("train={steps: 1, steps: 2}", r"Override of 'train': the value is not valid YAML: the key 'steps' is given"),
        *((f"seed={value}", "Override of .seed.: the value is not valid YAML") for value in BAD_VALUES),
    ],
)
def test_bad_overrides_say_what_is_wrong(file: Path, override: str, message: str):
    with pytest.raises(ValueError, match=message):
        load(RunConfig, file, [override])


def test_saved_config_loads_equal(file: Path, tmp_path: Path):
    config = load(RunConfig, file, ["train.lora.targets=[q_proj]", "deepspeed=deepspeed/zero2.json"])
    assert config.deepspeed == SHIPPED / "deepspeed/zero2.json"
    save(config, tmp_path / "config.yaml")
    assert load(RunConfig, tmp_path / "config.yaml") == config
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.yaml", "stage2.yaml"], "nothing half-written"


def test_keys_of_a_merge_may_be_given_again(tmp_path: Path):
    text = "a: &a {x: 1, y: 2}\nb:\n  <<: *a\n  y: 3\n"
    assert parse_yaml(text, "here") == {"a": {"x": 1, "y": 2}, "b": {"x": 1, "y": 3}}


def test_an_extending_file_is_laid_over_the_other(file: Path, tmp_path: Path):
    above = {"extends": "stage2", "seed": 5, "model": {"compressor": {"sides": [4, 4]}}}
    (tmp_path / "more.yaml").write_text(yaml.safe_dump(above))
    config = load(RunConfig, tmp_path / "more.yaml")
    assert config.seed == 5 and config.train.steps == 10
    assert config.model.compressor == MemberConfig(name="pool", sides=[4, 4])
    above["model"] = {"compressor": {"name": "langdc", "layer": 3}}
    (tmp_path / "more.yaml").write_text(yaml.safe_dump(above))
    compressor = load(RunConfig, tmp_path / "more.yaml").model.compressor
    assert compressor.settings == {"layer": 3}, "settings of another member do not stay"


def test_files_are_found_beside_another_by_path_or_among_those_that_ship(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ours = SHIPPED / "sample/langdc/stage1.yaml"
    assert find_config("sample/langdc/stage1") == find_config("sample/langdc/stage1.yaml") == ours
    assert find_config("sample/langdc") == SHIPPED / "sample/langdc/chain.yaml"
    mine = tmp_path / "mine"
    mine.mkdir()
    for place in (mine, tmp_path):
        (place / "zero2.json").write_text("{}")
    assert find_config("zero2.json", mine) == mine / "zero2.json", "beside comes first"
    assert find_config("zero2.json") == Path("zero2.json")
    assert load(RunConfig, "sample/langdc/stage1").train.steps == 40
    with pytest.raises(ValueError, match=r"no file sample/langdc/stage4\. Did you mean 'sample/langdc/stage3'"):
        find_config("sample/langdc/stage4")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [1", r"bad\.yaml is not valid YAML"),
        ("seed: 1\ntrain: {steps: 1}\nseed: 2", r"bad\.yaml is not valid YAML: the key 'seed' is given twice"),
        ("train:\n  steps: 1\n  steps: 2", "the key 'steps' is given twice, the first time in line 2"),
        ("a: !!python/name:os.system", r"bad\.yaml is not valid YAML: could not determine a constructor"),
        *((f"a: {value}", r"bad\.yaml is not valid YAML") for value in (*BAD_VALUES, "[" * 5000)),
        ("[1, 2]", "holds a list"),
        ("extends: absent.yaml", r"no file absent\.yaml"),
        ("extends: bad.yaml", "extends itself"),
    ],
)
def test_unreadable_files_are_explained(tmp_path: Path, text: str, message: str):
    (tmp_path / "bad.yaml").write_text(text)
    with pytest.raises(ValueError, match=message):
        load(RunConfig, tmp_path / "bad.yaml")
    with pytest.raises(ValueError, match="There is no file"):
        load(RunConfig, tmp_path / "nowhere.yaml")


def test_evaluation_rows_are_checked():
    tree = {"task": {"name": "sample"}, "output": "out", "entries": [{"name": "a", "model": "m", "control": "random"}]}
    with pytest.raises(ValueError, match=r"entries\.0\.control: .*random_tokens"):
        check(EvalConfig, tree, "eval.yaml")


EVALUATIONS = sorted([*SHIPPED.rglob("eval*.yaml"), SHIPPED / "sample/sweep.yaml"])
NOT_RUNS = re.compile(r"^(eval|vidcom2|retake|flexreduc)/|^sample/(eval|eval_full|sweep)$|^sizes$")
TRAINING = [name for name in _shipped_configs() if not NOT_RUNS.search(name)]
RUNS = [name for name in TRAINING if "\noutput: " in find_config(name).read_text()]


@pytest.mark.parametrize("name", RUNS)
def test_shipped_runs_are_valid_and_named_as_what_they_are(name: str):
    config, own = load(RunConfig, name), Path(name).name
    assert config.output.name == own
    assert config.stage == own[: len("stage1")] if own.startswith("stage") else config.stage is not None


def test_shipped_configs_name_the_schema_which_is_up_to_date():
    """Made by `langdc config-schema`."""
    if pydantic.VERSION.startswith("2.9."):
        pytest.skip(f"pydantic {pydantic.VERSION} writes a constant as an enumeration, too; 2.10 does not")
    assert json.loads((SHIPPED / "schema.json").read_text()) == schema()
    for name in TRAINING:
        path = find_config(name)
        first = path.read_text().splitlines()[0]
        assert first.startswith("# yaml-language-server: $schema="), path
        assert (path.parent / first.partition("$schema=")[2]).resolve() == (SHIPPED / "schema.json").resolve()


def test_the_schema_knows_every_key_of_a_config_and_no_other():
    run, _ = schema()["anyOf"]
    assert set(run["properties"]) == {*RunConfig.model_fields, "extends"}
    assert run["additionalProperties"] is False and "required" not in json.dumps(schema()["$defs"]["TrainConfig"])
    backbone = schema()["$defs"]["ModelConfig"]["properties"]["backbone"]
    assert {"type": "string"} in backbone["anyOf"]


@pytest.mark.parametrize("folder", [name for name in TRAINING if (SHIPPED / name / "chain.yaml").is_file()])
def test_shipped_chains_start_from_what_they_made(folder: str):
    links = chain.read([folder])
    outputs = [link.config.output for link in links]
    for number, link in enumerate(links):
        assert link.config.start is None or link.config.start in outputs[:number] or number == 0


@pytest.mark.parametrize("path", EVALUATIONS, ids=lambda path: path.stem)
def test_shipped_evaluations_are_valid_with_rows_of_different_names(path: Path):
    names = [entry.name for entry in load(EvalConfig, path).entries]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("pair", ["{1: x, 0x1: y}", "{true: x, yes: y}", "{~: x, null: y}", "{a: x, 'a': y}"])
def test_a_key_is_given_twice_in_other_spelling_too(pair: str):
    with pytest.raises(ValueError, match="is given twice"):
        parse_yaml(pair, "the file")


@pytest.mark.parametrize("written", ["010", "1:30", "-010", "0_1", "99999999999999999999", "4294967296"])
def test_numbers_that_may_be_read_in_two_ways_or_are_too_large_are_refused(file: Path, written: str):
    for path in ("train.steps", "seed", "train.learning_rate"):
        if path != "train.learning_rate" or int(written.replace(":", "")) < 2**31:
            reason = "valid integer|valid number|begin with 0|less than|greater than"
            with pytest.raises(ValueError, match=rf"{path}: .*({reason})"):
                load(RunConfig, file, [f"{path}={written}"])


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("2e-4", 2e-4),
        ("1e5", 1e5),
        ("-1.5E+3", -1500.0),
        (".5", 0.5),
        ("0x10", 16),
        ("0o10", 8),
        ("0", 0),
        ("1_000", 1000),
    ]
    + [(text, text) for text in ("010", "1:30", "1:30.5", "e5", ".", "1e", "0o8")],
)
def test_numbers_are_read_as_yaml_1_2_has_them(written: str, read: object, tmp_path: Path):
    found = parse_yaml(written, "the value")
    assert found == read and type(found) is type(read)
    save(MemberConfig(name="x", text=written, value=read), tmp_path / "saved.yaml")  # type: ignore[call-arg]
    saved = parse_yaml((tmp_path / "saved.yaml").read_text(), "the file")
    assert saved == {"name": "x", "text": written, "value": read}
    assert yaml.safe_load((tmp_path / "saved.yaml").read_text())["text"] == written, "other readers see text as well"


def test_weights_of_losses_are_not_negative(file: Path):
    assert load(RunConfig, file, ["loss_weights={answer: 0}"]).loss_weights == {"answer": 0}
    with pytest.raises(ValueError, match=r"loss_weights\.answer: .*greater than or equal to 0 \(given: -1\)"):
        load(RunConfig, file, ["loss_weights={answer: -1}"])


@pytest.mark.parametrize("text", ["root:x", "[1]"])
def test_a_file_for_deepspeed_is_read_with_the_settings(file: Path, tmp_path: Path, text: str):
    (tmp_path / "zero.json").write_text(text)
    with pytest.raises(ValueError, match=r"zero\.json (is not valid JSON|holds no JSON mapping)"):
        load(RunConfig, file, [f"deepspeed={tmp_path}/zero.json"])
