"""The loop answers every question once, can be cut off anywhere, counts failures, and decodes each video once."""

import gc
import importlib
import json
import shutil
import threading
from contextlib import nullcontext
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch

from langdc import __version__, devices, jsonl, tiny
from langdc.compressors.base import compressors
from langdc.config import save
from langdc.evaluate import command, tasks
from langdc.evaluate.folder import EvalFolder
from langdc.evaluate.identity import identity, plugin_sources
from langdc.evaluate.loop import evaluate
from langdc.evaluate.models import weights_identity
from langdc.evaluate.run import Run
from langdc.evaluate.settings import EvalConfig
from tests.evaluate import runs


def _task(config: EvalConfig):
    return tasks.build(config.task.name, **config.task.settings)


def _rows(folder: EvalFolder) -> dict[str, list[dict]]:
    return {name: folder.lines(name) for name in folder.names()}


def _of(lines: list[dict], kind: str) -> list[dict]:
    return [line for line in lines if line["type"] == kind]


def test_every_question_has_a_line_in_every_row(prepared: Path, finished: Path):
    config = runs.config(prepared)
    records = _task(config).records
    wanted = [f"{record.id}/{number}" for record in records for number in range(len(record.questions))]
    folder = EvalFolder.read(finished)
    assert folder.names() == [row.name for row in config.entries]
    for name, lines in _rows(folder).items():
        answers = _of(lines, "answer")
        assert [line["key"] for line in answers] == wanted, name
        assert all(line["flops"]["prefill"] > 0 and not line["failed"] for line in answers)
        assert [line["video"] for line in _of(lines, "video")] == [record.id for record in records]
        assert [line["warm"] for line in _of(lines, "timing")] == [False, True]
        assert lines[-1]["type"] == "finished"
    video = _of(_rows(folder)["langdc"], "video")[0]
    assert video["densities"] == [segment.density for segment in records[0].segments]
    assert video["targets"] == [segment.caption for segment in records[0].segments]
    assert len(video["captions"]) == 4
    assert sum(video["segment_tokens"]) == video["tokens"]
    for said, segment, recall in zip(video["captions"], records[0].segments, video["cue_recall"], strict=True):
        cues = [*segment.subjects, *segment.attributes, *segment.actions]
        assert recall == (sum(cue in said.split() for cue in cues) / len(cues) if cues else None)


def test_no_thread_outlives_an_evaluation(prepared: Path, tmp_path: Path, monkeypatch):
    """Also where nothing collects the cache that the threads decode for, and where it ends by an error."""
    before, entries = set(threading.enumerate()), [{"name": "pool 3", "model": str(prepared / "pool")}]
    gc.disable()
    try:
        for error in (None, OSError("no more")):
            config = runs.config(prepared, output=str(tmp_path / str(error)), entries=entries, limit=3)
            with pytest.raises(OSError, match="no more") if error else nullcontext():
                evaluate(config, _task(config))
            monkeypatch.setattr(Run, "time", Mock(side_effect=OSError("no more")))
        left = set(threading.enumerate()) - before
        for thread in left:
            thread.join(60)
        assert not [thread for thread in left if thread.is_alive()]
    finally:
        gc.enable()


def test_controls_keep_as_many_tokens_as_they_should(finished: Path):
    rows = _rows(EvalFolder.read(finished))
    tokens = {name: [line["tokens"] for line in _of(lines, "video")] for name, lines in rows.items()}
    mean = sum(tokens["langdc"]) / 3
    assert tokens["random"] == tokens["langdc"]
    assert tokens["random mean"] == [round(mean)] * 3
    assert tokens["frames"] == [max(1, int(mean / 13)) * 13] * 3  # 3x3 + 2x2 tokens per frame
    assert set(tokens["pool 3"]) == {16 * 13}
    assert _of(rows["text"], "video")[0]["captions"] == _of(rows["langdc"], "video")[0]["captions"]


def test_decoding_is_charged_to_every_row_alike(finished: Path):
    rows = _rows(EvalFolder.read(finished))
    charged = [
        [(line["seconds"]["decode"], line["seconds"]["encode"]) for line in _of(lines, "timing")]
        for lines in rows.values()
    ]
    assert all(row == charged[0] for row in charged)
    assert all(seconds > 0 for pair in charged[0] for seconds in pair)


def test_the_header_says_what_was_run(prepared: Path, finished: Path):
    header = json.loads((finished / "header.json").read_text())
    hashes = header["weights_sha256"]
    assert hashes["pool 3"] == hashes["random"] == weights_identity(prepared / "pool") != hashes["langdc"]
    assert header["version"] == __version__
    assert header["training"]["pool 3"]["steps"] == 10
    assert header["config"]["max_new_tokens"] == 3
    assert {"python", "cpu", "cores", "gpu", "packages", "commit", "command"} <= set(header["sessions"][0])


def test_each_video_is_decoded_once_for_all_entries(prepared: Path, tmp_path: Path):
    class Lm(runs.Counting):
        opened = []  # noqa: RUF012

    config = runs.config(prepared, output=str(tmp_path / "eval"))
    folder = evaluate(config, _task(config), load=lambda entry: Lm.from_pretrained(entry.model))
    assert sorted(Lm.opened) == ["v0.mp4", "v1.mp4", "v2.mp4"]
    session = folder.file("sessions").by_key["session/1/0"]
    assert (session["videos"], session["decoded"]) == (3, 3)
    assert set(session["stages"]) == {"decode", "preprocess", "encode", "compress", "prefill", "generate"}
    assert 0 < sum(session["stages"].values()) < session["seconds"]


def test_a_run_cut_off_anywhere_goes_on_to_the_same_lines(prepared: Path, finished: Path, tmp_path: Path):
    copied = Path(shutil.copytree(finished, tmp_path / "eval"))
    whole = jsonl.read(copied / "results" / "random" / "0.jsonl")
    (copied / "results" / "frames" / "0.jsonl").unlink()
    path = copied / "results" / "random" / "0.jsonl"
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])  # in the middle of a line
    config = runs.config(prepared, output=str(copied))
    evaluate(config, _task(config))
    again = {line["key"]: line for line in jsonl.read(path)}
    assert set(again) == {line["key"] for line in whole}
    for line in whole:
        if line["type"] != "timing":
            assert again[line["key"]] == line
    assert jsonl.read(copied / "results" / "frames" / "0.jsonl")[-1]["type"] == "finished"
    assert len(json.loads((copied / "header.json").read_text())["sessions"]) == 2


def test_a_finished_run_loads_no_model(prepared: Path, copied: Path):
    def load(row):
        raise AssertionError(f"{row.name} was loaded again")

    config = runs.config(prepared, output=str(copied))
    before = (copied / "results" / "langdc" / "0.jsonl").read_bytes()
    evaluate(config, _task(config), load=load)
    assert (copied / "results" / "langdc" / "0.jsonl").read_bytes() == before


def test_other_settings_are_refused_by_name(prepared: Path, copied: Path):
    config = runs.config(prepared, output=str(copied), max_new_tokens=4)
    with pytest.raises(ValueError, match=r"config\.max_new_tokens: 3 there, 4 now"):
        evaluate(config, _task(config))


def test_files_that_changed_are_named(prepared: Path, tmp_path: Path):
    """A video that was answered, and any file of a model: at the next start answers would be of both."""
    place = Path(shutil.copytree(prepared, tmp_path / "place"))
    stock = Path(shutil.copytree(tiny.folder("qwen2_vl"), tmp_path / "stock"))
    entry = {"name": "stock", "model": str(stock), "limit": 1}
    more = {"output": str(tmp_path / "eval"), "entries": [entry], "reference": None, "timing_videos": 0}
    evaluate(config := runs.config(place, **more), _task(config))
    videos, template = place / "data" / "videos", stock / "chat_template.jinja"
    each = (videos / "v0.mp4", r"1 have changed since, such as .*v0\.mp4"), (template, r"stock\.chat_template\.jinja")
    for path, said in each:
        before = path.read_bytes()
        path.write_bytes(before + b" ")
        with pytest.raises(ValueError, match=said):
            evaluate(config, _task(config))
        path.write_bytes(before)
    (videos / "v2.mp4").write_bytes(b"not asked about")
    evaluate(config, _task(config))


def test_records_that_change_while_they_are_read_are_refused(prepared: Path, tmp_path: Path):
    file = Path(shutil.copytree(prepared / "data", tmp_path / "data")) / "test.jsonl"
    task = tasks.build("records", data=str(file))
    file.write_bytes(file.read_bytes() + b"\n")
    with pytest.raises(ValueError, match=r"test\.jsonl was changed while it was read"):
        task.data_hash()


def test_weights_are_in_the_type_that_is_asked(prepared: Path, tmp_path: Path, monkeypatch):
    row = {"name": "pool", "model": str(prepared / "pool")}
    with pytest.raises(ValueError, match="device 'nowhere' is not on this machine"):
        evaluate(config := runs.config(prepared, output=str(tmp_path / "eval"), device="nowhere"), _task(config))
    assert not (tmp_path / "eval").exists()
    settings = {"output": str(tmp_path / "eval"), "entries": [row], "reference": None, "limit": 1}
    folder = evaluate(config := runs.config(prepared, **settings, dtype="bfloat16"), _task(config))
    (model,) = _of(folder.lines("pool"), "model")
    assert (model["dtype"], model["device"]) == ("bfloat16", "cpu")
    assert all(not line["failed"] for line in _of(folder.lines("pool"), "answer"))
    with pytest.raises(ValueError, match=r"config\.dtype: 'bfloat16' there, 'auto' now"):
        evaluate(config := runs.config(prepared, **settings), _task(config))
    monkeypatch.setattr(devices, "device", lambda: torch.device("cuda", 0))  # where auto is bfloat16
    assert identity(config, _task(config))["config"]["dtype"] == "bfloat16"


def test_the_command_says_where_and_in_which_type(prepared: Path, tmp_path: Path, monkeypatch):
    config_file = tmp_path / "eval.yaml"
    save(runs.config(prepared, output=str(tmp_path / "eval"), dtype="float16"), config_file)
    given: list[EvalConfig] = []

    def evaluated(settings, *_, **__):
        given.append(settings)
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "evaluate", evaluated)
    for more in ([], ["--device", "cuda:1"], ["--device", "cpu", "--dtype", "bfloat16", "limit=1"]):
        with pytest.raises(KeyboardInterrupt):
            command.main([str(config_file), *more])
    assert [(one.device, one.dtype) for one in given] == [
        ("auto", "float16"), ("cuda:1", "float16"), ("cpu", "bfloat16"),
    ]  # fmt: skip
    with pytest.raises(ValueError, match="dtype: Input should be 'auto', 'float32', 'bfloat16' or 'float16'"):
        command.main([str(config_file), "--dtype", "half"])


MINE = """
from langdc import __version__
from langdc.compressors.base import compressors
from langdc.compressors.plain import Random

@compressors.register("mine")
class Mine(Random):
    pass
"""


def test_a_compressor_from_elsewhere_is_known_by_its_source(
    prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "my_compressor.py").write_text(MINE)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(compressors, "_members", dict(compressors._members))
    importlib.import_module("my_compressor")
    chain = {"name": "chain", "members": [{"name": "mine", "keep": 0.5}]}
    entry = {"name": "a", "model": str(prepared / "pool"), "compressor": chain}
    config = runs.config(prepared, entries=[entry], reference=None)
    before, same = plugin_sources(config), identity(config, _task(config))
    assert set(before) == {"my_compressor"}
    (tmp_path / "my_compressor.py").write_text(MINE.replace("pass", "seed = 1"))
    assert plugin_sources(config) != before and identity(config, _task(config)) == same  # a change warns
    assert plugin_sources(runs.config(prepared)) == {}
    entry = {**entry, "compressor": {"name": "my_compressor:Mine", "keep": 0.5}}
    assert set(plugin_sources(runs.config(prepared, entries=[entry], reference=None))) == {"my_compressor"}


def test_a_broken_video_scores_0_and_the_run_goes_on(prepared: Path, tmp_path: Path):
    shutil.copytree(prepared / "data", tmp_path / "data")
    (tmp_path / "data" / "videos" / "v1.mp4").write_bytes(b"no video")
    task = {"name": "sample", "data": str(tmp_path / "data" / "test.jsonl")}
    config = runs.config(prepared, output=str(tmp_path / "eval"), task=task)
    config = config.model_copy(update={"entries": [config.entries[0], config.entries[3]]})
    folder = evaluate(config, _task(config))
    for lines in _rows(folder).values():
        answers = _of(lines, "answer")
        failed = [line for line in answers if line["failed"]]
        assert {line["video"] for line in failed} == {"v1"}
        assert not any(line["correct"] for line in failed)
        assert "v1.mp4" in failed[0]["reason"]
        assert {line["video"] for line in answers} == {"v0", "v1", "v2"}
    assert folder.failures == 2 * len([r for r in _task(config).records if r.id == "v1"][0].questions)  # noqa: RUF015


def test_a_question_that_cannot_be_answered_fails_alone(prepared: Path, tmp_path: Path):
    class Lm(runs.Counting):
        opened = []  # noqa: RUF012

        def answer(self, batch, **generation):
            if any(video.times.sum() > 0 and question.startswith("bad") for video, question in batch):
                raise ValueError("This question is bad.")
            return super().answer(batch, **generation)

    config = runs.config(prepared, output=str(tmp_path / "eval"), timing_videos=0, batch_size=3)
    config = config.model_copy(update={"entries": config.entries[:1]})
    task = _task(config)
    worse = [question.model_copy(update={"question": "bad"}) for question in task.records[2].questions]
    task.records[2] = task.records[2].model_copy(update={"questions": worse})
    folder = evaluate(config, task, load=lambda entry: Lm.from_pretrained(entry.model))
    answers = _of(_rows(folder)["langdc"], "answer")
    assert {line["video"] for line in answers if line["failed"]} == {"v2"}
    assert {line["reason"] for line in answers if line["failed"]} == {"This question is bad."}
    assert Lm.opened == ["v0.mp4", "v1.mp4", "v2.mp4"]


def test_a_control_on_the_wrong_model_says_so(prepared: Path, tmp_path: Path):
    rows = [
        {"name": "langdc", "model": str(prepared / "langdc")},
        {"name": "wrong", "model": str(prepared / "langdc"), "control": "random_tokens", "match": "langdc"},
    ]
    config = runs.config(prepared, output=str(tmp_path / "eval"), entries=rows, reference=None, limit=1)
    with pytest.raises(ValueError, match="trained with 'pool'"):
        evaluate(config, _task(config))


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"name": "a", "model": "m"}, {"name": "a", "model": "m"}], "names of entries must differ"),
        ([{"name": "a", "model": "m", "control": "uniform_frames"}], "name the entry that has it: match"),
        ([{"name": "a", "model": "m", "match": "b"}], "match belongs to a compressor, layers, a kv, or a control"),
        ([{"name": "a", "model": "m", "control": "uniform_frames", "match": "b"}], "entries before it"),
        ([{"name": "../a", "model": "m"}], "pattern"),
    ],
)
def test_rows_that_do_not_fit_are_refused(tmp_path: Path, rows: list[dict], message: str):
    with pytest.raises(ValueError, match=message):
        runs.config(tmp_path, entries=rows, reference=None)


def test_a_reference_that_is_no_row_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="reference is no entry"):
        runs.config(tmp_path, reference="langdd")
