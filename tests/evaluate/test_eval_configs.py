"""The configs of the benchmarks hold what can be run: every name exists, every setting is one of its member's."""

import inspect
import re
from pathlib import Path

import pytest

from langdc.backbones import backbones
from langdc.compressors import compressors
from langdc.config import load
from langdc.evaluate import tasks
from langdc.evaluate.settings import EvalConfig
from langdc.evaluate.tasks import tasks as registry
from langdc.evaluate.tasks.open_ended import OpenEnded
from langdc.kvcompressors import kvcompressors
from langdc.layercompressors import layercompressors
from langdc.registry import check_keywords

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted((ROOT / "configs" / "eval").glob("*.yaml"))
BENCHMARKS = [name for name in registry.names() if name not in ("records", "sample")]
PUBLISHED = {
    "videomme": (58.6, 64.3),
    "mvbench": (56.9, 60.4),
    "mlvu": (63.0, 70.3),
    "longvideobench": (56.4, 59.6),
}


def _load(name: str, *overrides: str) -> EvalConfig:
    return load(EvalConfig, ROOT / "configs" / "eval" / f"{name}.yaml", overrides)


def test_every_benchmark_has_a_config_and_a_page():
    assert [path.stem for path in FILES] == BENCHMARKS and len(BENCHMARKS) == 11
    for name in BENCHMARKS:
        page = (ROOT / "docs" / "benchmarks" / f"{name}.md").read_text()
        assert f"langdc eval eval/{name}" in page


@pytest.mark.parametrize("name", BENCHMARKS)
def test_all_members_exist_with_their_settings(name: str):
    config = _load(name)
    assert config.task.name == name and config.output == Path(f"runs/eval/{name}")
    check_keywords(f"task {name}", tasks.tasks.get(name), config.task.settings)
    rows = config.all_entries
    for row in rows:
        assert row.backbone is not None
        check_keywords(row.name, backbones.get(row.backbone.name), {"source": str(row.model), **row.backbone.settings})
        if row.compressor is not None:
            compressors.build(row.compressor.name, **row.compressor.settings)
        if row.kv is not None:
            kvcompressors.build(row.kv.name, **row.kv.settings)
    assert config.sweep is not None
    models, methods, budgets = len(config.sweep.models), len(config.sweep.methods), len(config.sweep.budgets)
    assert len(rows) == models * (1 + budgets * (methods + 6)) and models == budgets == 3  # with six controls


def test_the_sweep_of_the_sample_has_every_training_free_method():
    config = load(EvalConfig, ROOT / "configs/sample/sweep.yaml")
    used = {(part, given.name) for row in config.all_entries for part in ("compressor", "layers", "kv")
            if (given := getattr(row, part)) is not None}  # fmt: skip
    for part, zoo in (("compressor", compressors), ("layers", layercompressors), ("kv", kvcompressors)):
        budgeted = {name for name in zoo.names() if "keep" in inspect.signature(zoo.get(name)).parameters}
        trained = {name for name in budgeted if "width" in inspect.signature(zoo.get(name)).parameters}
        assert {(part, name) for name in budgeted - trained - {"framefusion"}} <= used  # it takes one stream


@pytest.mark.parametrize("name", BENCHMARKS)
def test_the_head_says_the_commands_and_where_the_published_score_is_from(name: str):
    config = _load(name)
    head = "\n".join(re.findall(r"^#.*", (ROOT / "configs" / "eval" / f"{name}.yaml").read_text(), re.MULTILINE))
    assert f"langdc eval eval/{name}" in head
    assert f"langdc data benchmark {name} --root {config.task.settings['root']}" in head
    scores = [(one.entry, one.score) for one in config.published]
    if name in PUBLISHED:
        onevision, video = PUBLISHED[name]
        both = [("llava_onevision uncompressed", onevision), ("llava_video uncompressed", video)]
        assert scores == both and all("2505.14454" in one.source for one in config.published)
        printed = (ROOT / "docs" / "benchmarks" / f"{name}.md").read_text()
        assert f"| {onevision} |" in printed and f"| {video} |" in printed
    else:
        assert scores == [] and "No published score is set" in head


@pytest.mark.parametrize("name", BENCHMARKS)
def test_open_ended_replies_have_a_judge(name: str):
    open_ended = issubclass(registry.get(name), OpenEnded)  # pyright: ignore[reportArgumentType]
    assert (_load(name).judge is not None) == open_ended
    if open_ended:
        assert _load(name, "judge=null").judge is None


def test_places_are_given_on_the_command_line():
    config = _load("videomme", "sweep.models.qwen2_5_vl.model=/models/qwen", "task.root=/data", "sweep.budgets=[0.2]")
    assert config.task.settings["root"] == "/data"
    assert {str(row.model) for row in config.all_entries if row.name.startswith("qwen2_5_vl ")} == {"/models/qwen"}
