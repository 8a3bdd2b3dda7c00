"""Runs in order: what starts from what, what is skipped, and stages of 0.1 read as chains."""

import logging
from pathlib import Path

import pytest
import yaml

from langdc import compat, jsonl
from langdc import config as settings
from langdc.config import RunConfig
from langdc.failures import Ended
from langdc.train import chain, output

MODEL = {"backbone": "videogpt_plus", "compressor": {"name": "pool"}}
TRAIN = {"data": ["data.jsonl"], "steps": 3, "trainable": ["*"]}


def write(folder: Path, **files: object) -> Path:
    for name, tree in files.items():
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(tree))
    return folder


def run(output: str, **more: object) -> dict:
    return {"objective": "answer", "model": MODEL, "output": output, "train": TRAIN, **more}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    files = {"a": run("runs/a"), "b": run("runs/b"), "c": run("runs/c", start="runs/a"), "d": run("runs/d", start=None)}
    return write(tmp_path, chain=["a.yaml", "b.yaml", "c", "d"], **files)


def finished(config: RunConfig) -> Path:
    """What training leaves."""
    config.output.mkdir(parents=True, exist_ok=True)
    settings.save(config, config.output / output.SETTINGS)
    jsonl.write_json(config.output / output.FINISHED, {"steps": 3, "loss": 0.5})
    return config.output


def starts(links: list[chain.Link]) -> list[str | None]:
    return [str(link.config.start) if link.config.start else None for link in links]


def test_a_run_starts_from_the_one_before_unless_its_file_says_otherwise(folder: Path):
    links = chain.read([folder], ["seed=3"])
    assert starts(links) == [None, "runs/a", "runs/a", None]
    assert [link.config.seed for link in links] == [3] * 4
    assert starts(chain.read([folder / "a.yaml", folder / "b"])) == [None, "runs/a"]


def test_output_of_a_chain_is_a_folder_and_starts_follow(folder: Path):
    links = chain.read([folder], ["output=other"])
    assert [str(link.config.output) for link in links] == ["other/a", "other/b", "other/c", "other/d"]
    assert starts(links) == [None, "other/a", "other/a", None]
    (link,) = chain.read([folder / "a.yaml"], ["output=other"])
    assert link.config.output == Path("other")


def test_two_runs_of_one_output_and_a_start_that_comes_later_are_refused(folder: Path):
    with pytest.raises(ValueError, match="have the same output"):
        chain.read([folder / "a.yaml", folder / "a.yaml"])
    with pytest.raises(ValueError, match="does not run before it"):
        chain.read([folder / "c.yaml", folder / "a.yaml"])
    write(folder, chain={"runs": ["a"]})
    with pytest.raises(ValueError, match="is not a list of config files"):
        chain.read([folder])


def test_finished_runs_are_skipped_and_later_ones_start_from_the_newest(folder: Path):
    first = chain.read([folder / "a.yaml"])[0].config
    finished(first)
    newest = finished(first.model_copy(update={"output": Path("runs/a-2")}))
    trained: list[RunConfig] = []
    assert chain.run(chain.read([folder]), lambda config: trained.append(config) or finished(config)) == Path("runs/d")
    assert [str(config.output) for config in trained] == ["runs/b", "runs/c", "runs/d"]
    assert [config.start for config in trained] == [newest, newest, None]
    assert chain.run(chain.read([folder]), lambda config: pytest.fail("all are finished")) == Path("runs/d")


def test_a_chain_does_not_take_a_run_with_other_settings_for_its_own(folder: Path):
    chain.run(chain.read([folder]), finished)
    with pytest.raises(
        ValueError, match=r"runs/a holds a finished run of(.|\n)*seed: 0 before, 1 now(.|\n)*output=DIR"
    ):
        chain.run(chain.read([folder], ["seed=1"]), finished)


STAGE = {
    "stage": "stage2",
    "model": {"host": {"name": "videogpt_plus"}, "compressor": {"name": "langdc"}},
    "start": "runs/stage1",
    "output": "runs/stage2",
    "seed": 3,
    "phases": [
        {
            "name": "base",
            "objective": "caption",
            "data": ["images.jsonl"],
            "trainable": ["compressor.projectors.*"],
            "captioner_lora": {"rank": 2, "alpha": 4},
            "steps": 20,
        },
        {"name": "align", "objective": "align", "data": ["a.jsonl"], "trainable": ["*"], "segment_text": "[{number}]",
         "epochs": 1},
        {"name": "post", "objective": "answer", "data": ["a.jsonl"], "trainable": ["host.projectors.*"], "steps": 4,
         "captions": "captioner", "projector_learning_rate": 1e-4, "questions_per_video": 2},
    ],
}  # fmt: skip


def test_a_stage_of_0_1_is_read_as_a_chain_with_one_warning(tmp_path: Path, monkeypatch, caplog):
    monkeypatch.setattr(compat, "_warned", set())
    monkeypatch.setattr(logging.getLogger("langdc"), "propagate", True)
    write(tmp_path, stage2=STAGE)
    base, align, post = (link.config for link in chain.read([tmp_path / "stage2.yaml"], ["phases.post.steps=5"]))
    assert len({record.message for record in caplog.records if record.levelno >= logging.WARNING}) == 1
    assert [str(config.output) for config in (base, align, post)] == [
        "runs/stage2/phases/base", "runs/stage2/phases/align", "runs/stage2",
    ]  # fmt: skip
    assert [config.start for config in (base, align, post)] == [Path("runs/stage1"), base.output, align.output]
    assert {config.seed for config in (base, align, post)} == {3}
    assert base.objective.name == "compress" and base.model.backbone.name == "videogpt_plus"
    assert base.train.compressor_lora is not None and base.train.compressor_lora.rank == 2
    assert base.train.targets == "records" and base.train.questions_per_video == 8, "the default of 0.1"
    assert align.objective.settings == {"segment_text": "[{number}]"} and align.train.epochs == 1
    assert post.train.targets == "none" and post.train.rates == {"*projector*": 1e-4}
    assert post.train.trainable == ["backbone.projectors.*"]
    assert post.train.steps == 5 and post.train.questions_per_video == 2


def test_the_sample_recipe_makes_what_it_lacks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A stand-in for its commands leaves what they leave; none of them is a rank of the run."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RANK", "0")
    commands: list[list[str]] = []

    codes = [0]

    def ran(command: list[str], env: dict[str, str]) -> int:
        assert "RANK" not in env
        commands.append(command[2:])
        if "langdc.cli" in command:
            for name in ("images", "train"):
                Path("data/sample").mkdir(parents=True, exist_ok=True)
                Path(f"data/sample/{name}.jsonl").touch()
        else:
            for link in chain.read(command[3:]):
                finished(link.config)
        return codes[-1]

    monkeypatch.setattr(chain, "run_command", ran)
    names = chain.prepared("stage3")
    recipe = [link.name for link in chain.read([chain.SAMPLE])]
    assert names == recipe[-1:] and len(recipe) == 6
    assert commands[0] == ["langdc.cli", "data", "sample", "--out", "data/sample"]
    assert commands[1] == ["langdc.train", *recipe[:-1]]
    chain.prepared("stage3")
    assert len(commands) == 2, "nothing is made twice"
    codes.append(3)
    monkeypatch.setattr(chain.Link, "finished", property(lambda self: None))
    with pytest.raises(ValueError, match="ended with status 3"):
        chain.prepared("stage2")
    codes.append(143)
    with pytest.raises(Ended, match="15"):
        chain.prepared("stage2")


def test_a_chain_that_names_itself_is_refused(tmp_path: Path):
    (tmp_path / "chain.yaml").write_text("[chain.yaml]")
    with pytest.raises(ValueError, match="names itself"):
        chain.read([tmp_path])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("extends: [a.yaml]", "not the name of one"),
        ("extends:", "None is not the name"),
        ("phases: []", "not a list of map"),
    ],
)
def test_a_broken_config_of_a_chain_is_told(tmp_path: Path, text: str, said: str):
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(ValueError, match=said):
        chain.read([tmp_path / "a.yaml"])
