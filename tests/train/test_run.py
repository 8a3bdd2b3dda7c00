"""A run: it leaves a checkpoint and its figures, a kill changes nothing, and errors are one message."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from langdc import checkpoint, jsonl
from langdc.config import ModelConfig, RunConfig, check
from langdc.hashing import tensors_hash
from langdc.train import output, run, setup, stopping
from langdc.train.run import main, train
from tests import tiny
from tests.train import ranks, small
from tests.train.kill import losses

LORA = {"rank": 2, "alpha": 4, "dropout": 0.1}
FLASH = "flash_attention_2"


def captions(place: Path, **changes: Any) -> RunConfig:
    """LangDC's projectors learn captions of images."""
    settings = {"objective": "compress", "output": str(place), "trainable": ["compressor.projectors.*"], "steps": 5}
    return small.run_config(small.langdc(segment_marker=True), "images", **{**settings, **changes})


def answers(place: Path, **changes: Any) -> RunConfig:
    """Adapters with dropout and the post-projector learn replies; several questions share a video."""
    settings = {
        "output": str(place), "trainable": ["compressor.post_projector.*"], "lora": LORA, "questions_per_video": 2,
        "steps": 5, "save_steps": 2,
    }  # fmt: skip
    return small.run_config(small.langdc(segment_marker=True), "train", **{**settings, **changes})


def figures(directory: Path) -> dict[str, Any]:
    return json.loads((directory / output.FINISHED).read_text())


def test_a_run_leaves_a_checkpoint_and_its_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The run counts as finished once its log is on the disk."""
    synced, sync = list[str](), os.fsync
    monkeypatch.setattr(
        os, "fsync", lambda number: (synced.append(Path(f"/proc/self/fd/{number}").readlink().name), sync(number))
    )
    directory = train(answers(tmp_path / "x"))
    assert synced[-3:] == ["log.jsonl", f"{output.FINISHED}.partial", "x"]
    found, lines = figures(directory), jsonl.read(directory / "log.jsonl")
    assert found["steps"] == 5 and [line["step"] for line in lines] == [1, 2, 3, 4, 5]
    assert found["samples"] == 10 and found["flops"] == lines[-1]["flops"] > 0
    assert found["loss"] == lines[-1]["loss"] and not list(directory.glob("resume/*"))
    model = checkpoint.load(directory)
    parameters = dict(model.named_parameters())
    saved = load_file(directory / checkpoint.WEIGHTS)
    assert tensors_hash(saved) == found["hash"]
    assert all(torch.equal(tensor, parameters[name]) for name, tensor in saved.items())
    assert any(tensor.any() for name, tensor in parameters.items() if "lora_B" in name)
    assert checkpoint.read_manifest(directory)["objective"] == "answer"
    assert train(answers(tmp_path / "x")).name == "x-2"


@pytest.mark.parametrize(
    ("step", "changes"),
    [
        pytest.param(3, {}, id="mid-epoch"),
        pytest.param(3, {"gradient_accumulation": 2}, id="accumulated", marks=pytest.mark.slow),
        pytest.param(4, {"save_steps": 3, "steps": 7}, id="epoch-end", marks=pytest.mark.slow),
    ],
)
def test_killed_and_started_again_equals_uninterrupted(tmp_path: Path, step: int, changes: dict):
    """Six videos in batches of two; dropout, drawn questions and the order of the data must go on as they were."""
    whole = train(answers(tmp_path / "whole", **changes))
    config, log = answers(tmp_path / "x", **changes), tmp_path / "x" / "log.jsonl"
    ranks.run_until(1, config, step)
    assert list((tmp_path / "x").glob(f"resume/checkpoint-*/{output.COMPLETE}"))
    assert not (tmp_path / "x" / output.FINISHED).exists()
    assert train(config) == tmp_path / "x"
    assert losses(log) == losses(whole / "log.jsonl")
    assert {**figures(tmp_path / "x"), "seconds": 0} == {**figures(whole), "seconds": 0}


@pytest.mark.slow
def test_a_checkpoint_cut_short_is_passed_over(tmp_path: Path):
    whole = train(answers(tmp_path / "whole", steps=7))
    config = answers(tmp_path / "x", steps=7, keep_checkpoints=3)
    ranks.run_until(1, config, 5)
    kept = sorted((tmp_path / "x" / "resume").iterdir())
    assert [path.name for path in kept][:2] == ["checkpoint-2", "checkpoint-4"]
    assert not (kept[1] / "model.safetensors").exists(), "frozen weights are not in it"
    for path in kept[1:]:
        (path / output.COMPLETE).unlink(missing_ok=True)
        (path / "optimizer.pt").write_bytes(b"")
    assert figures(train(config))["hash"] == figures(whole)["hash"]


@pytest.mark.parametrize("file", ["optimizer.pt", "trainer_state.json", "trained.safetensors", "rng_state.pth"])
def test_a_damaged_checkpoint_gives_way_and_the_result_is_the_same(tmp_path: Path, file: str, harmed: tuple[Path, str]):
    """Two checkpoints stay by default, so that there is one before."""
    killed, expected = harmed
    place = Path(shutil.copytree(killed, tmp_path / "x"))
    kept = output.checkpoints(place / output.RESUME)
    assert [path.name for path in kept] == ["checkpoint-4", "checkpoint-6"]
    (kept[1] / file).write_bytes(b"\0" * (kept[1] / file).stat().st_size)
    config = answers(place, steps=9)
    assert figures(train(config))["hash"] == expected
    assert [line["step"] for line in jsonl.read(place / "log.jsonl")] == list(range(1, 10))


@pytest.fixture(scope="module")
def harmed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The directory of a run that was killed after its third checkpoint, and the hash of what it comes to."""
    place = tmp_path_factory.mktemp("harmed")
    config = answers(place / "x", steps=9)
    ranks.run_until(1, config, 7)
    return place / "x", figures(train(answers(place / "whole", steps=9)))["hash"]


def test_a_later_run_keeps_what_an_earlier_one_trained(tmp_path: Path):
    first = train(captions(tmp_path / "first"))
    later = train(answers(tmp_path / "later", start=str(first)))
    before, after = (checkpoint.load(place).compressor.projectors.state_dict() for place in (first, later))
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)


def test_an_adapter_renames_what_it_wraps(tmp_path: Path):
    """The language model is trained whole, then with an adapter on top: the first training must not be lost."""
    whole = train(answers(tmp_path / "whole", lora=None, trainable=["backbone.language_model.*"], steps=2))
    adapted = train(answers(tmp_path / "adapted", start=str(whole), steps=2))
    name = "backbone.language_model.model.layers.0.self_attn.q_proj"
    first = checkpoint.load(whole).get_parameter(f"{name}.weight")
    last = checkpoint.load(adapted).get_parameter(f"{name}.base_layer.weight")
    assert torch.equal(first, last)
    with pytest.raises(ValueError, match=r"train\.lora is .*export the earlier checkpoint"):
        train(answers(tmp_path / "other", start=str(adapted), lora={**LORA, "rank": 4}))


def test_adapters_of_the_compressor_are_merged_when_the_run_is_done(tmp_path: Path):
    settings = {"compressor_lora": {**LORA, "dropout": 0.0}, "learning_rate": 1e-2, "steps": 3}
    one = train(captions(tmp_path / "one", **settings))
    two = train(captions(tmp_path / "two", start=str(one), **settings))
    saved = {place.name: load_file(place / checkpoint.WEIGHTS) for place in (one, two)}
    for tensors in saved.values():
        assert not any("lora" in name or "base_layer" in name for name in tensors)
    layer = "compressor.captioner.language_model.model.layers.0.mlp.up_proj.weight"
    kept = "compressor.captioner.language_model.model.layers.0.input_layernorm.weight"
    assert torch.equal(saved["one"][kept], saved["two"][kept])
    change = saved["two"][layer] - saved["one"][layer]
    assert 0 < torch.linalg.matrix_rank(change, rtol=1e-4) <= LORA["rank"]
    assert torch.equal(checkpoint.load(two).get_parameter(layer), saved["two"][layer])


def test_settings_that_train_nothing_are_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="trains nothing"):
        train(answers(tmp_path / "x", lora=None, trainable=[]))
    with pytest.raises(ValueError, match="does not call the language model"):
        train(captions(tmp_path / "y", lora=LORA))
    pool = small.run_config(tiny.model("pool"), output=str(tmp_path / "z"), compressor_lora=LORA)
    with pytest.raises(ValueError, match="'pool' has no language model in it"):
        train(pool)


def test_a_loss_that_is_no_number_ends_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    step = torch.optim.AdamW.step

    def spoiled(self: torch.optim.AdamW, *arguments: Any, **keywords: Any) -> Any:
        found = step(self, *arguments, **keywords)
        self.param_groups[0]["params"][0].data.fill_(float("nan"))
        return found

    monkeypatch.setattr(torch.optim.AdamW, "step", spoiled)
    said = r"(?s)The loss is NaN or infinite at step 2.*a weight of which is not finite.*learning_rate"
    with pytest.raises(ValueError, match=said):
        train(answers(tmp_path / "x", log_steps=4))
    assert not (tmp_path / "x" / output.FINISHED).exists()
    assert not output.checkpoints(tmp_path / "x" / output.RESUME), "none after the second step"


@pytest.mark.slow
def test_what_was_saved_is_read_by_a_fresh_process_if_asked(tmp_path: Path):
    config = answers(tmp_path / "x", steps=2, verify_save=True)
    assert figures(train(config))["verified"] == len(load_file(tmp_path / "x" / checkpoint.WEIGHTS))


def test_what_was_saved_is_read_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    load = checkpoint.load_file

    def spoiled(file: Path) -> dict[str, torch.Tensor]:
        return {name: tensor + 1 for name, tensor in load(file).items()}

    monkeypatch.setattr(checkpoint, "load_file", spoiled)
    with pytest.raises(ValueError, match="does not hold what was written"):
        train(answers(tmp_path / "x", steps=2))
    assert not (tmp_path / "x" / output.FINISHED).exists()


# ---- kernels


def kernels(monkeypatch: pytest.MonkeyPatch, config: RunConfig) -> dict[str, str]:
    """The attention that the language models of a small model get, where flash-attn is there."""
    model, chosen = small.langdc(), {}
    for name, part in (
        ("backbone", model.backbone.language_model),
        ("captioner", model.compressor.captioner.language_model),
    ):
        part.config._attn_implementation = "eager"
        monkeypatch.setattr(part, "set_attn_implementation", lambda kernel, name=name: chosen.update({name: kernel}))
        monkeypatch.setattr(part.base_model, "set_attn_implementation", lambda kernel: None)
    monkeypatch.setattr(setup, "fastest_attention", lambda half, _: (FLASH, "there") if half else ("sdpa", "float32"))
    setup._set_kernels(model, config, run.objectives.build(config.objective.name))
    return chosen


def test_auto_takes_flash_attn_for_a_compressor_that_is_trained_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    half = {"attention": "auto", "precision": "bfloat16"}
    assert kernels(monkeypatch, captions(tmp_path, **half)) == {"backbone": "sdpa", "captioner": FLASH}
    assert kernels(monkeypatch, answers(tmp_path, **half)) == {"backbone": "sdpa", "captioner": "sdpa"}
    assert kernels(monkeypatch, captions(tmp_path, attention="auto")) == {"backbone": "sdpa", "captioner": "sdpa"}
    with pytest.raises(ValueError, match=r"questions_per_video > 1.*Use auto"):
        kernels(monkeypatch, answers(tmp_path, **{**half, "attention": FLASH}))


# ---- the command


def command(config: RunConfig, folder: Path, *words: str) -> int:
    (folder / "config.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json")))
    return main(["--config", str(folder / "config.yaml"), *words])


def test_the_command_says_steps_loss_and_place(tmp_path: Path, capsys: pytest.CaptureFixture):
    assert command(captions(tmp_path / "x"), tmp_path, "--local_rank=0", "train.steps=3") == 0
    loss = losses(tmp_path / "x" / "log.jsonl")[3]
    assert capsys.readouterr().out == f"x: 3 steps, loss {loss:.4f} -> {tmp_path / 'x'}\n"


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("train.learning_rat=1", "unknown key. Did you mean 'learning_rate'"),
        ("objective=compres", "Did you mean 'compress'"),
        ("train.trainable=[compressor.projector.*]", "compressor.projectors.*"),
        ("train.data=[none.jsonl]", "none.jsonl"),
        ("start=nowhere", "nowhere"),
        ("deepspeed=zero9.json", "no file zero9.json"),
        ("precision=float16", "float16 needs an accelerator"),
        ("train.schedule=cosin", "'cosine'"),
        ("loss_weights={captoin: 2}", "captoin"),
    ],
)
def test_mistakes_are_one_message_without_a_traceback(tmp_path: Path, capsys, override: str, said: str):
    if "float16" in override and torch.accelerator.is_available():
        pytest.skip("this machine has an accelerator")
    assert command(captions(tmp_path / "x"), tmp_path, override) == 2
    error = capsys.readouterr().err
    line = error[error.index("error: ") :]
    assert said in line and len(line.splitlines()) < 20 and "Traceback" not in error


LATE = ("train.data=[none.jsonl]", "train.trainable=[no.*]", "loss_weights={captoin: 2}", "train.rates={nothing: 1.0}")


@pytest.mark.parametrize("override", LATE)
def test_a_refused_run_leaves_nothing(tmp_path: Path, override: str):
    """Wherever the mistake is found: in the records, in the model, or where the steps would begin."""
    assert command(captions(tmp_path / "new" / "x"), tmp_path, override) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["config.yaml"]


@pytest.mark.parametrize(
    ("limit", "file"),
    [
        (200, "config.yaml"),
        (3000, "checkpoint-1"),
        (60_000, "model.safetensors"),
    ],
)
@pytest.mark.slow
def test_a_full_disk_is_one_line_with_the_file_and_the_same_command_continues(tmp_path: Path, limit: int, file: str):
    """No file may be larger than a limit, which fails as a full disk does: in settings, by torch, by safetensors."""
    config = captions(tmp_path / "x", save_steps=1).model_dump(mode="json")
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    code = (
        "import resource, sys\nfrom langdc.cli import main\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]),) * 2) if len(sys.argv) > 1 else None\n"
        f"raise SystemExit(main(['train', {str(tmp_path / 'config.yaml')!r}]))"
    )
    for words, expected in (([str(limit)], 3), ([], 0)):
        done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True)
        assert done.returncode == expected, done.stderr
        said = done.stderr[done.stderr.find("error: ") :] if expected else ""
        assert expected == 0 or (file in said and len(said.splitlines()) == 1 and "Traceback" not in done.stderr)


def test_a_tracker_that_is_not_installed_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "tensorboard" else find(name))
    with pytest.raises(ValueError, match=r"trackers: tensorboard is not installed"):
        train(captions(tmp_path / "y", trackers=["tensorboard"]))


def test_a_run_that_was_asked_to_stop_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    def stop(config: RunConfig) -> Path:
        raise stopping.Stopped("x stopped after step 3 of 5")

    monkeypatch.setattr(run, "train", stop)
    assert command(captions(tmp_path / "x"), tmp_path) == stopping.EXIT_CODE == 75
    assert capsys.readouterr().err.endswith("x stopped after step 3 of 5. The same command resumes from there.\n")


def test_no_config_is_a_mistake(capsys):
    assert main([]) == 2 and "Give a config" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["a.yaml", "--processes", "2", "seed=1"], ["a.yaml", "seed=1", "--processes=2"]])
def test_several_processes_are_started_by_the_launcher(monkeypatch: pytest.MonkeyPatch, words: list[str]):
    started: list[list[str]] = []

    def ran(command: list[str], launcher: bool) -> int:
        started.append(command[1:])
        return 7 if launcher else 0

    monkeypatch.setattr(run, "run_command", ran)
    assert main(words) == 7
    launcher = ["-m", "deepspeed.launcher.runner", "--num_accelerators", "2", "--module", "langdc.train"]
    assert started == [[*launcher, "a.yaml", "seed=1"]]
    monkeypatch.setattr(run.chain, "prepared", lambda stage: [f"{stage}.yaml"])
    assert main(["--processes=2", "--traceback"], stage="stage2") == 7
    assert started[1] == [*launcher, "stage2.yaml", "--traceback"], "a stage's script hands on what it would train"


@pytest.mark.parametrize("backbone", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl", "llava_onevision"])
@pytest.mark.parametrize("objective", ["answer", "compress"])
def test_features_that_are_too_many_are_made_in_each_step(tmp_path: Path, backbone: str, objective: str) -> None:
    """The frozen encoders are out of the module tree then, and the language model of `compress` is not there at all."""
    source = {"name": backbone, "source": f"tiny:{backbone}", "frames": 4 if backbone == "llava_onevision" else 8}
    written = {"captioner": "sample:language_model", "prompt": "describe the image", "layer": 2, "pool": [2]}
    compressor = {"name": "langdc", **written, "segment_marker": True, "max_soft_tokens": 24}
    model = check(ModelConfig, {"backbone": source, "compressor": compressor}, "test")
    trainable = {"answer": "compressor.post_projector*", "compress": "compressor.projectors.*"}[objective]
    settings = {"objective": objective, "steps": 1, "trainable": [trainable], "feature_memory": 0}
    directory = train(small.run_config(model, "train", **settings, output=str(tmp_path / "run")))
    assert (directory / "finished.json").is_file()
