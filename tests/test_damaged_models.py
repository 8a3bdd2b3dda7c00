"""Every command that reads a model names the file of it that is damaged, and ends with 2."""

import json
import pickle
import re
import shutil
from pathlib import Path

import pytest
import torch

from langdc import cli, modelfiles, tiny
from langdc.data.records import QuestionRecord, Record, write_records
from langdc.sources import resolve

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
RUN = ["tiny/qwen2_5_vl/vidcom2_lora", "model.backbone.source=MODEL", "train.data=[OUT/test.jsonl]", "output=OUT/run"]
COMMANDS: dict[str, list[str]] = {
    "compare": ["compare", "VIDEO", "what ?", "--model", "MODEL", "--keep", "0.5", "--out", "OUT/page.html"],
    "train": ["train", *RUN],
    "plan": ["plan", *RUN],
    "eval": ["eval", "OUT/eval.yaml"],
    "export": ["export", "MODEL", "OUT/exported"],
    "convert": ["convert", "llava_video", "MODEL", "OUT/converted"],
    "convert a file": ["convert", "internvideo2", "MODEL/model.safetensors", "OUT/converted"],
}


KINDS = [(command, kind) for command in list(COMMANDS)[:-2] for kind in ("settings", "weights")]


@pytest.mark.parametrize(("command", "damage"), [*KINDS, ("convert", "settings"), ("convert a file", "weights")])
def test_every_command_names_the_damaged_file(sample_video: Path, tmp_path: Path, capsys, command: str, damage: str):
    source = resolve("sample:langdc" if command == "export" else "tiny:qwen2_5_vl")
    folder = Path(shutil.copytree(Path(str(source)), tmp_path / "model"))
    if damage == "settings":
        file = folder / ("langdc.json" if command == "export" else "config.json")
        file.write_text("[]")
    elif command in ("export", "convert a file"):
        file = folder / WEIGHTS
        file.write_bytes(file.read_bytes()[:-10])
    else:
        file = folder / "model-00002-of-00002.safetensors"
        (folder / WEIGHTS).unlink()
        (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": {"a": file.name}}))
    record = Record(
        id="1", video=str(sample_video), questions=[QuestionRecord(kind="open", question="what ?", answer="a ball")]
    )
    write_records(tmp_path / "test.jsonl", [record])
    task = {"name": "sample", "data": str(tmp_path / "test.jsonl")}
    entry = {"name": "one", "model": str(folder), "compressor": {"name": "vidcom2", "keep": 0.5}}
    settings = {"task": task, "output": str(tmp_path / "results"), "entries": [entry]}
    (tmp_path / "eval.yaml").write_text(json.dumps(settings))
    named = {"MODEL": str(folder), "VIDEO": str(sample_video), "OUT": str(tmp_path)}
    words = [re.sub("MODEL|VIDEO|OUT", lambda found: named[found[0]], word) for word in COMMANDS[command]]
    assert cli.main(words) == 2
    err = capsys.readouterr().err
    assert file.name in err and str(folder) in err and "Traceback" not in err


def test_pickles_of_a_training_state_and_of_several_devices(tmp_path: Path):
    torch.save({"module": {"module.a": torch.ones(2)}}, tmp_path / "state.pt")
    assert modelfiles.read_tensors(tmp_path / "state.pt")["a"].tolist() == [1, 1]
    tied = torch.ones(3)
    torch.save({"a": tied, "b": tied, "c": torch.arange(4).expand(1, -1)}, tmp_path / "tied.bin")
    assert list(modelfiles.read_tensors(tmp_path / "tied.bin")) == ["a", "b", "c"]
    (tmp_path / "old.bin").write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(ValueError, match=r"old\.bin"):
        modelfiles.read_tensors(tmp_path / "old.bin")


def test_tiny_folders_are_whole():
    for name in ("qwen2", "qwen2_5_vl"):
        modelfiles.check_files(tiny.folder(name), weights=True)
