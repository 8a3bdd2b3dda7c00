"""Settings: strict, all mistakes at once, overrides, and a saved config that loads equal."""

from pathlib import Path

import pytest
import yaml

from langdc.config import MemberConfig, StageConfig, check, load, save
from langdc.evaluation.settings import EvalConfig

PHASE = {"name": "base", "objective": "caption", "data": ["train.jsonl"], "trainable": ["compressor.*"], "steps": 10}
STAGE = {
    "stage": "stage2",
    "model": {"backbone": {"name": "videogpt_plus"}, "compressor": {"name": "pool", "sides": [2, 2]}},
    "phases": [PHASE, {**PHASE, "name": "density", "steps": None, "epochs": 0.5}],
}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "stage2.yaml"
    path.write_text(yaml.safe_dump(STAGE))
    return path


def mistakes(tree: dict) -> list[str]:
    with pytest.raises(ValueError) as caught:
        check(StageConfig, tree, "stage2.yaml")
    head, *lines = str(caught.value).splitlines()
    assert head == f"stage2.yaml has {len(lines)} mistake(s):"
    return [line.strip() for line in lines]


def test_all_mistakes_come_at_once_with_path_and_nearest_key():
    tree = {
        **STAGE,
        "fases": [],
        "seed": "many",
        "model": {**STAGE["model"], "compresor": {}},
        "phases": [PHASE, {**PHASE, "lerning_rate": 1, "batch_size": 0}],
    }
    found = mistakes(tree)
    assert len(found) == 5
    for wanted in (
        "fases: unknown key. Did you mean 'phases'?",
        "model.compresor: unknown key. Did you mean 'compressor'?",
        "phases.1.lerning_rate: unknown key. Did you mean 'learning_rate'?",
    ):
        assert any(line.startswith(wanted) for line in found), (wanted, found)
    assert any(line.startswith("seed:") and "given: 'many'" in line for line in found)
    assert any(line.startswith("phases.1.batch_size:") and "given: 0" in line for line in found)


def test_a_key_below_an_optional_model_is_explained_too():
    (line,) = mistakes({**STAGE, "phases": [{**PHASE, "lora": {"rang": 4}}]})
    assert line.startswith("phases.0.lora.rang: unknown key. Did you mean 'rank'?")


def test_missing_and_forbidden_values_are_named():
    tree = {key: value for key, value in STAGE.items() if key != "stage"}
    found = mistakes({**tree, "precision": "float8"})
    assert any(line == "stage: Field required" for line in found)
    assert any(line.startswith("precision:") and "float8" in line for line in found)


@pytest.mark.parametrize("length", [{"steps": None}, {"steps": 3, "epochs": 1}])
def test_a_phase_has_exactly_one_length(length: dict):
    (line,) = mistakes({**STAGE, "phases": [{**PHASE, **length}]})
    assert "exactly one of epochs and steps" in line


def test_settings_do_not_change_after_loading(file: Path):
    config = load(StageConfig, file)
    with pytest.raises(ValueError, match="frozen"):
        config.seed = 3


def test_members_keep_their_keyword_arguments(file: Path):
    assert load(StageConfig, file).model.compressor.settings == {"sides": [2, 2]}
    assert MemberConfig(name="pool").settings == {}


def test_overrides_reach_list_items_by_name_and_number_and_hold_yaml(file: Path):
    changed = load(
        StageConfig,
        file,
        [
            "phases.density.learning_rate=1.0e-3",
            "phases.0.steps=7",
            "phases.density.lora.rank=4",
            "model.compressor.sides=[4, 4]",
            "start=runs/one",
        ],
    )
    assert changed.phases[1].learning_rate == 1e-3 and changed.phases[0].learning_rate == 2e-4
    assert changed.phases[0].steps == 7
    assert changed.phases[1].lora is not None and changed.phases[1].lora.rank == 4
    assert changed.model.compressor.settings == {"sides": [4, 4]}
    assert changed.start == Path("runs/one")


@pytest.mark.parametrize("written", ["1e-3", "1.0e-3", "0.001", "'1e-3'"])
def test_numbers_may_be_written_as_people_write_them(file: Path, written: str):
    """YAML reads 1e-3 as text; a number is wanted and a number it becomes."""
    changed = load(StageConfig, file, [f"phases.0.learning_rate={written}"])
    assert changed.phases[0].learning_rate == 1e-3


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("seed", "is not of the form dotted.key=value"),
        ("=3", "is not of the form dotted.key=value"),
        ("phases.finish.steps=3", r"no item 'finish'; items 0 to 1, names \['base', 'density'\]"),
        ("phases.2.steps=3", "no item '2'; items 0 to 1"),
        ("stage.name=x", "goes through the value 'stage2'"),
        ("sed=3", "sed: unknown key. Did you mean 'seed'"),
    ],
)
def test_bad_overrides_say_what_is_wrong(file: Path, override: str, message: str):
    with pytest.raises(ValueError, match=message):
        load(StageConfig, file, [override])


def test_saved_config_loads_equal(file: Path, tmp_path: Path):
    config = load(StageConfig, file, ["phases.base.lora.targets=[q_proj]", "deepspeed=zero2.json"])
    save(config, tmp_path / "config.yaml")
    assert load(StageConfig, tmp_path / "config.yaml") == config
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.yaml", "stage2.yaml"], "nothing half-written"


def test_an_extending_file_is_laid_over_the_other(file: Path, tmp_path: Path):
    above = {"extends": file.name, "seed": 5, "model": {"compressor": {"sides": [4, 4]}}}
    (tmp_path / "more.yaml").write_text(yaml.safe_dump(above))
    config = load(StageConfig, tmp_path / "more.yaml")
    assert config.seed == 5 and len(config.phases) == 2
    assert config.model.compressor == MemberConfig(name="pool", sides=[4, 4])
    above["model"] = {"compressor": {"name": "langdc", "layer": 3}}
    (tmp_path / "more.yaml").write_text(yaml.safe_dump(above))
    compressor = load(StageConfig, tmp_path / "more.yaml").model.compressor
    assert compressor.settings == {"layer": 3}, "settings of another member do not stay"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [1", "is not valid YAML"),
        ("[1, 2]", "holds a list"),
        ("extends: absent.yaml", r"no config file .*absent\.yaml, which .*bad\.yaml extends"),
        ("extends: bad.yaml", "extends itself"),
    ],
)
def test_unreadable_files_are_explained(tmp_path: Path, text: str, message: str):
    (tmp_path / "bad.yaml").write_text(text)
    with pytest.raises(ValueError, match=message):
        load(StageConfig, tmp_path / "bad.yaml")
    with pytest.raises(ValueError, match="no config file"):
        load(StageConfig, tmp_path / "nowhere.yaml")


def test_evaluation_rows_are_checked():
    tree = {"task": {"name": "sample"}, "output": "out", "rows": [{"name": "a", "model": "m", "control": "random"}]}
    with pytest.raises(ValueError, match=r"rows\.0\.control: .*random_tokens"):
        check(EvalConfig, tree, "eval.yaml")


ROOT = Path(__file__).resolve().parent.parent
STAGES = sorted((ROOT / "configs").rglob("stage[123]*.yaml"))
EVALUATIONS = sorted((ROOT / "configs").rglob("eval*.yaml"))


@pytest.mark.parametrize("path", STAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_shipped_stages_are_valid_and_named_as_what_they_are(path: Path):
    assert load(StageConfig, path).stage == path.stem[: len("stage1")]


@pytest.mark.parametrize("path", EVALUATIONS, ids=lambda path: str(path.relative_to(ROOT)))
def test_shipped_evaluations_are_valid_with_rows_of_different_names(path: Path):
    names = [row.name for row in load(EvalConfig, path).rows]
    assert len(set(names)) == len(names)
