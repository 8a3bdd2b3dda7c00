"""The `langdc` command: quick to start, and every error one line with a code of docs/failures.md."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from langdc import checkpoint, cli, compat
from langdc.cli import COMMANDS, main

ROOT = Path(__file__).resolve().parent.parent
DOORS = {
    "data_prep/sample.py": "data sample",
    "data_prep/caption.py": "data caption",
    "data_prep/check.py": "data check",
    "data_prep/preview.py": "data preview",
    "data_prep/features.py": "data features",
    "data_prep/langdc_mix.py": "data mix",
    "data_prep/benchmarks.py": "data benchmark",
    "data_prep/import_data.py": "data import",
    "scripts/convert_internvideo2.py": "convert internvideo2",
    "scripts/convert_langdc.py": "convert langdc",
    "scripts/convert_llava_video.py": "convert llava_video",
    "scripts/convert_videogpt_plus.py": "convert videogpt_plus",
    "scripts/export_hf.py": "export",
}


def test_help_is_quick_and_imports_nothing_heavy():
    """CPU seconds of the process and its modules, as the user waits for them."""
    code = (
        "import json, sys, time\n"
        "from langdc import cli\n"
        "try: cli.main(['--help'])\n"
        "except SystemExit: pass\n"
        "print(json.dumps([time.process_time(), sorted(m for m in sys.modules if '.' not in m)]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    seconds, modules = json.loads(done.stdout.splitlines()[-1])
    assert not {"torch", "transformers", "deepspeed", "numpy", "pydantic", "rich"} & set(modules)
    assert seconds < 0.5
    for command in COMMANDS:
        assert f"  {command.words} " in done.stdout and command.help in done.stdout


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.words)
def test_every_command_has_its_function(command: cli._Command):
    module, _, function = command.target.partition(":")
    assert callable(getattr(importlib.import_module(module), function))


@pytest.mark.parametrize("door", DOORS)
def test_scripts_are_thin_doors_to_the_same_commands(door: str):
    text = (ROOT / door).read_text()
    assert len(text.splitlines()) <= 12 and f'door("{DOORS[door]}")' in text
    assert DOORS[door] in [command.words for command in COMMANDS]


def test_a_group_lists_its_commands_and_an_unknown_one_is_a_mistake(capsys):
    assert main(["convert"]) == 0
    assert "convert internvideo2" in capsys.readouterr().out
    for words in (["nothing"], ["data", "nothing"], []):
        with pytest.raises(SystemExit) as ended:
            main(words)
        assert ended.value.code == 2
    assert "There is no command 'data nothing'" in capsys.readouterr().err


def test_a_terminal_is_told_what_is_loaded_before_it_is(monkeypatch, capsys):
    def load(name: str) -> None:
        assert capsys.readouterr().err == "Loading langdc data import ...\n" * sys.stderr.isatty()
        raise ValueError("seen")

    monkeypatch.setattr(cli.importlib, "import_module", load)
    for terminal in (True, False):
        monkeypatch.setattr(sys.stderr, "isatty", lambda terminal=terminal: terminal)
        assert main(["data", "import", "x.csv", "--out", "y.jsonl"]) == 2
        assert capsys.readouterr().err.endswith("seen\n")


def test_an_endpoint_names_its_models_as_it_likes():
    assert cli._check_names("data caption", ["v", "--endpoint", "http://h/v1", "--model", "/served/eye"]) is None


def test_text_of_users_is_no_markup(capsys):
    for question in ("[/b] what", "[red]what :smile:"):
        assert main(["ask", "--sample", question, "--max-new-tokens", "2"]) == 0
        assert question in capsys.readouterr().out


def test_captions_are_shown_as_they_are(capsys):
    from langdc.tools.ask import _show
    from langdc.types import Answer

    _show(Answer("[b]yes", 3, [1, 2], captions=["[person] walks", "a [/b] dog"]), ["[x]", "y"])
    said = capsys.readouterr().out
    assert all(text in said for text in ("[b]yes", "[person] walks", "a [/b] dog", "[x]"))


def test_doctor_shows_extras(capsys):
    assert main(["doctor"]) == 0
    assert "'langdc[" in capsys.readouterr().out


def test_a_question_in_another_encoding_is_a_mistake(capsys):
    assert main(["ask", "--sample", os.fsdecode(b"caf\xe9 ?")]) == 2
    assert "is not valid UTF-8" in capsys.readouterr().err


def test_the_model_is_made_where_and_in_the_type_that_is_told(monkeypatch, capsys):
    """By default on the accelerator, if there is one, in bfloat16."""
    made: list[tuple] = []
    selected: list[str] = []
    here = checkpoint.open_model

    def open_model(directory, backbone, device, dtype):
        made.append((str(device), dtype))
        return here(directory, backbone)

    monkeypatch.setattr(checkpoint, "open_model", open_model)
    monkeypatch.setattr("langdc.pipeline.VideoLM.to", lambda self, _: self)
    monkeypatch.setattr("langdc.devices.device", lambda *_: torch.device("cuda:0"))
    monkeypatch.setattr("langdc.devices.select", lambda where: selected.append(str(where)))
    for more in ([], ["--device", "cpu"], ["--device", "cpu", "--dtype", "float16"], ["--dtype", "float32"]):
        assert main(["ask", "--sample", "--max-new-tokens", "1", *more]) == 0
    expected = [("cuda:0", torch.bfloat16), ("cpu", None), ("cpu", torch.float16), ("cuda:0", torch.float32)]
    assert made == expected and selected == [device for device, _ in expected]
    monkeypatch.undo()
    assert main(["ask", "--sample", "--device", "nowhere"]) == 2
    assert "device 'nowhere' is not on this machine" in capsys.readouterr().err
    assert main(["ask", "--sample", "--dtype", "int8"]) == 2
    assert "dtype is 'int8'; allowed are auto, float32, bfloat16, float16" in capsys.readouterr().err


def test_the_old_name_of_backbone_is_read_with_a_warning(monkeypatch, capsys):
    said: list[str] = []
    monkeypatch.setattr(compat, "warn_once", lambda old, new: said.append(f"{old} {new}"))
    assert main(["ask", "clip.mp4", "what ?", "--model", "gone", "--host", "llava_video"]) == 2
    assert said == ["--host --backbone"]


def test_compare_looks_at_the_output_before_it_asks(tmp_path: Path, monkeypatch, capsys):
    monkeypatch.setattr("langdc.pipeline.VideoLM.from_pretrained", lambda *_, **__: pytest.fail("a model was loaded"))
    words = ["compare", "clip.mp4", "what ?", "--model", "m", "--keep", "0.5", "--out"]
    for out in (tmp_path / "no/such/x.html", tmp_path):
        assert main([*words, str(out)]) == 2
        assert "give a file in a folder that exists" in capsys.readouterr().err


def test_config_schema_describes_every_key(capsys):
    assert main(["config-schema"]) == 0
    tree = json.loads(capsys.readouterr().out)
    assert "extends" in json.dumps(tree) and "output" in json.dumps(tree)
    assert main(["config-schema", "--eval"]) == 0
    assert '"task"' in capsys.readouterr().out
