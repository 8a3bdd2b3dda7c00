"""Validation: which records are held out, the exact loss on them, the best step, and the end of what gets no better."""

import json
from collections import namedtuple
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from langdc import checkpoint, jsonl
from langdc.config import RunConfig, ValidationConfig, check
from langdc.data.records import QuestionRecord, Record, read_records, write_records
from langdc.evaluate.answers import normalise
from langdc.evaluate.statistics import mean
from langdc.pipeline import VideoLM
from langdc.train import output, validation
from langdc.train.objectives import objectives
from langdc.train.run import train
from langdc.train.samples import Sample
from langdc.train.validation import split
from langdc.types import Context
from tests import tiny
from tests.train import ranks, small

LORA = {"rank": 2, "alpha": 4, "dropout": 0.0}


def learning(place: Path, *files: str, **changes: Any) -> RunConfig:
    """LangDC's post-projector and adapters learn replies; three videos are held out."""
    held_out = {"data": [str(small.folder() / "test.jsonl")], "every": 2}
    settings = {
        "trainable": ["compressor.post_projector.*"], "lora": LORA, "questions_per_video": 2, "steps": 5,
        "validation": {**held_out, **changes.pop("validation", {})}, "output": str(place), "save_steps": 3,
    }  # fmt: skip
    return small.run_config(small.langdc(segment_marker=True), *files, **{**settings, **changes})


def evaluated(directory: Path) -> list[dict[str, Any]]:
    """What was measured, with its steps."""
    lines = [line for line in jsonl.read(directory / output.LOG) if "eval_loss" in line]
    return [{name: line[name] for name in line if name.startswith("eval_") or name == "step"} for line in lines]


def figures(directory: Path) -> dict[str, Any]:
    return json.loads((directory / output.FINISHED).read_text())


# ---- what is held out


def records(place: Path, videos: Sequence[str | None], name: str = "own") -> Path:
    """A file with one record for each video of the small data; None is a question without a video."""
    asked = [QuestionRecord(kind="say", question="say red", answer="red")]
    media = {video: str(small.folder() / video) for video in videos if video is not None}
    found = [Record(id=str(n), video=video and media[video], questions=asked) for n, video in enumerate(videos)]
    write_records(place / f"{name}.jsonl", found)
    return place / f"{name}.jsonl"


def sides(config: RunConfig) -> tuple[list[str], list[str]]:
    """The ids of the records on both sides."""
    found = split(tiny.model("pool"), objectives.build("answer"), config)
    assert all([sample.index for sample in side] == list(range(len(side))) for side in found)
    learned, held = ([sample.record.id for sample in side] for side in found)
    return learned, held


def videos() -> list[str]:
    return [record.video for record in read_records(small.folder() / "train.jsonl") if record.video]


def test_a_share_holds_out_whole_videos_and_is_drawn_by_the_seed(tmp_path: Path):
    shown = [video for video in videos()[:4] for _ in range(3)] + [None] * 4
    data = str(records(tmp_path, shown))
    drawn = set()
    for seed in range(8):
        config = small.run_config(tiny.config("pool"), data, validation={"share": 0.3}, seed=seed)
        learned, held = sides(config)
        assert sorted(learned + held, key=int) == [str(n) for n in range(16)] and sides(config) == (learned, held)
        assert 0.3 * 16 <= len(held) <= 0.3 * 16 + 3
        assert not {shown[int(n)] for n in held} & {shown[int(n)] for n in learned} - {None}
        drawn.add(tuple(held))
    assert len(drawn) > 4


def test_records_that_are_linked_by_videos_stay_together(monkeypatch: pytest.MonkeyPatch):
    shown = {0: "ab", 1: "", 2: "c", 3: "bd", 4: "e", 5: "dc", 6: "e"}
    monkeypatch.setattr(validation, "_videos", lambda sample: {Path(each) for each in shown[sample.index]})
    samples = [Sample(Record(id=str(n)), None, n, f"line {n}") for n in shown]
    groups = [[sample.index for sample in group] for group in validation._by_video(samples)]
    assert groups == [[0, 2, 3, 5], [1], [4, 6]]


def test_the_accuracy_is_over_files_and_not_over_records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Also where records show a file by a link, or several files that another record shows one by one."""
    for name in ("a.mp4", "b.mp4", "c.mp4"):
        (tmp_path / name).touch()
    (tmp_path / "link.mp4").symlink_to("a.mp4")
    shown = [["a.mp4"], ["a.mp4"], ["link.mp4"], ["c.mp4", "b.mp4"], ["b.mp4"], ["c.mp4"], []]
    asked = SimpleNamespace(answered=True, options=[], answer="dog", prompt=lambda: "?")
    Spec = namedtuple("Spec", "path")
    samples = [
        SimpleNamespace(
            where=f"own, line {n}",
            specs=[Spec(tmp_path / name) for name in names],
            record=SimpleNamespace(questions=[asked]),
        )
        for n, names in enumerate(shown)
    ]
    dog = SimpleNamespace(text="dog")
    lm = SimpleNamespace(answer=lambda batch: [dog] * len(batch), converse=lambda *_: dog)
    seen: list[list[str]] = []
    monkeypatch.setattr(validation, "VideoLM", lambda model: lm)
    monkeypatch.setattr(validation.Validation, "_opened", lambda *_: None)
    monkeypatch.setattr(validation.Validation, "_alive", lambda *_: None)
    monkeypatch.setattr(validation, "mean", lambda scores, videos: seen.append(videos) or mean(scores, videos))
    data = SimpleNamespace(
        samples=samples, model=None, config=SimpleNamespace(train=SimpleNamespace(batch_size=2, validation=True))
    )
    assert validation.Validation(None, data)._accuracy()["eval_accuracy"] == 1.0  # pyright: ignore
    assert len(seen[0]) == 7 and len(set(seen[0])) == 3


def test_files_are_held_out_as_they_are(tmp_path: Path):
    held, own = records(tmp_path, [videos()[5], None], "held"), records(tmp_path, [*videos()[:2], None])
    config = small.run_config(tiny.config("pool"), str(own), validation={"data": [str(held)]})
    assert sides(config) == (["0", "1", "2"], ["0", "1"])


def test_a_video_on_both_sides_is_named(tmp_path: Path):
    held, own = records(tmp_path, [videos()[5], videos()[1]], "held"), records(tmp_path, videos()[:2])
    config = small.run_config(tiny.config("pool"), str(own), validation={"data": [str(held)]})
    with pytest.raises(ValueError, match=rf"held.jsonl: line 2 .* shows .*{videos()[1]}.*own.jsonl: line 2"):
        sides(config)


def test_a_share_that_leaves_nothing_to_learn_from_is_refused(tmp_path: Path):
    config = small.run_config(tiny.config("pool"), str(records(tmp_path, videos()[:1] * 3)), validation={"share": 0.1})
    with pytest.raises(ValueError, match=r"train\.validation\.share: 0\.1 of 3 records takes all of their 1 videos"):
        sides(config)


@pytest.mark.parametrize("settings", [{}, {"data": ["x.jsonl"], "share": 0.1}])
def test_records_or_a_share_are_given(settings: dict):
    with pytest.raises(ValueError, match="exactly one of data"):
        check(ValidationConfig, settings, "test")


def test_what_cannot_be_measured_is_refused_before_the_model_is_built(tmp_path: Path):
    asked = {"validation": {"accuracy": True}}
    zero = str(ranks.ROOT / "configs" / "deepspeed" / "zero3.json")
    for changes, message in [
        ({**asked, "objective": "compress"}, "does not call the language model"),
        ({**asked, "deepspeed": zero}, "under ZeRO-3"),
        ({"objective": "align"}, "solved at once"),
    ]:
        with pytest.raises(ValueError, match=message):
            train(learning(tmp_path / "x", **changes))
    with pytest.raises(ValueError, match="no validation record has a question with an answer"):
        told = {"name": "distill", "replies": "model"}
        asked = {"questions": [QuestionRecord(kind="say", question="?")]}
        silent = [record.model_copy(update=asked) for record in held_out_records()]
        write_records(small.folder() / "silent.jsonl", silent)
        file = str(small.folder() / "silent.jsonl")
        train(learning(tmp_path / "x", objective=told, trainable=[], validation={"data": [file], "accuracy": True}))


def held_out_records() -> list[Record]:
    return read_records(small.folder() / "test.jsonl")


# ---- the figures


def test_the_loss_is_the_mean_over_all_targets(tmp_path: Path):
    """Of every question, and of each video's captions once; two of a batch do not change each other's.

    Features in float32: in bfloat16 some of a batch are rounded otherwise than alone, which changes a loss by 1e-5.
    """
    changes = {"trainable": ["compressor.*"], "lora": None, "loss_weights": {"caption": 0.5}}
    changes |= {"validation": {"every": 9}, "features_dtype": "float32"}
    directory = train(learning(tmp_path / "x", **changes))
    model, answer = checkpoint.load(directory), objectives.build("answer")
    model.requires_grad_(True)  # so that the captions' loss is computed
    totals = {"answer": [0.0, 0], "caption": [0.0, 0]}
    for record in held_out_records():
        for number, question in enumerate(record.questions):
            write_records(small.folder() / "one.jsonl", [record.model_copy(update={"questions": [question]})])
            data = small.data_of(model, small.run_config(model, "one"))
            batch = small.batch_of(data)["batch"]
            wanted = frozenset({"tokens", "caption"})
            with torch.no_grad():
                found = answer.losses(model.eval(), batch, Context(wanted=wanted, targets=batch.targets))
            for name in ("answer",) if number else ("answer", "caption"):
                totals[name] = [one + float(other) for one, other in zip(totals[name], found[name], strict=True)]
    means = {name: total / count for name, (total, count) in totals.items()}
    (line,) = evaluated(directory)
    assert line["step"] == 5
    assert line["eval_loss_answer"] == pytest.approx(means["answer"], rel=1e-6)
    assert line["eval_loss_caption"] == pytest.approx(means["caption"], rel=1e-6)
    assert line["eval_loss"] == pytest.approx(means["answer"] + 0.5 * means["caption"], rel=1e-6)


@pytest.mark.slow
def test_measuring_changes_nothing_that_is_learned(tmp_path: Path):
    """Random numbers of dropout included; replies are written in the type that training computes in."""
    common = {"lora": {**LORA, "dropout": 0.2}, "precision": "bfloat16"}
    measured = train(learning(tmp_path / "x", **common, validation={"accuracy": True}))
    config = learning(tmp_path / "y", **common)
    off = train(config.model_copy(update={"train": config.train.model_copy(update={"validation": None})}))
    losses = [[line["loss"] for line in jsonl.read(each / output.LOG)] for each in (measured, off)]
    assert losses[0] == losses[1] and figures(measured)["hash"] == figures(off)["hash"]
    assert not evaluated(off) and not (off / "best").exists() and "best" not in figures(off)
    assert all(0 <= line["eval_accuracy_low"] <= line["eval_accuracy_high"] <= 1 for line in evaluated(measured))


@pytest.mark.slow
def test_the_accuracy_is_that_of_the_replies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The answers of about half of the questions are what the model will reply.

    Replies are short: later words of random weights change with the rounding of a batch.
    """
    answer = VideoLM.answer
    monkeypatch.setattr(
        VideoLM, "answer", lambda lm, batch, **given: answer(lm, batch, **{"max_new_tokens": 3, **given})
    )
    changes = {"features_dtype": "float32", "validation": {"every": 9, "accuracy": True}}
    lm = VideoLM.from_pretrained(train(learning(tmp_path / "x", **changes)))
    held, right, texts = [], 0, []
    for record in held_out_records():
        asked = []
        for question in record.questions:
            reply = normalise(lm.ask(record.media_path(small.folder()), question.prompt()).text)
            told = question.answer if len(texts) % 2 or not reply else reply
            right += told == reply
            texts.append(told)
            asked.append(question.model_copy(update={"answer": told}))
        held.append(record.model_copy(update={"questions": asked}))
    write_records(small.folder() / "known.jsonl", held)
    file = [str(small.folder() / "known.jsonl")]
    changes["validation"] |= {"data": file}
    (line,) = evaluated(train(learning(tmp_path / "y", **changes)))
    assert right >= len(texts) // 2
    assert line["eval_accuracy"] == pytest.approx(right / len(texts), abs=1e-9)
    assert line["eval_accuracy_low"] <= line["eval_accuracy"] <= line["eval_accuracy_high"]


@pytest.mark.slow
def test_trackers_get_the_figures(tmp_path: Path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    directory = train(learning(tmp_path / "x", trackers=["tensorboard"]))
    seen = accumulator.EventAccumulator(str(directory / "tensorboard"))
    seen.Reload()
    logged = [event.value for event in seen.Scalars("eval/loss")]
    torch.testing.assert_close(logged, [line["eval_loss"] for line in evaluated(directory)], rtol=1e-6, atol=0)


# ---- the best step, and the end


@pytest.mark.slow
def test_the_best_step_is_kept_beside_the_last_and_a_run_without_gain_ends(tmp_path: Path):
    """Captions of other videos are learned until they get worse; the compressor's adapters are merged in both."""
    common = {
        "objective": "compress", "trainable": ["compressor.projectors.*"], "lora": None, "compressor_lora": LORA,
        "learning_rate": 3e-2, "schedule": "constant", "warmup": 0.0, "verify_save": True,
    }  # fmt: skip
    directory = train(learning(tmp_path / "x", "images", **common, steps=60, validation={"patience": 3}))
    lines, found = evaluated(directory), figures(directory)
    best = min(lines, key=lambda line: line["eval_loss"])
    assert found["steps"] == best["step"] + 6 == lines[-1]["step"] < 60, "three measurements after the best one"
    assert found["best"]["steps"] == best["step"] and found["best"]["eval_loss"] == best["eval_loss"]
    assert found["best"]["verified"] == found["verified"] > 0 and not (directory / "resume").exists()
    assert checkpoint.read_manifest(directory / "best")["training"]["steps"] == best["step"]
    for steps, place in ((best["step"], directory / "best"), (found["steps"], directory)):
        short = train(learning(tmp_path / "y", "images", **common, steps=steps))
        wanted, saved = load_file(short / checkpoint.WEIGHTS), load_file(place / checkpoint.WEIGHTS)
        assert wanted.keys() == saved.keys() and all(torch.equal(saved[name], wanted[name]) for name in wanted)
    assert found["best"]["hash"] != found["hash"]


@pytest.mark.slow
def test_killed_and_started_again_equals_uninterrupted(tmp_path: Path):
    """The best loss and tensors, how long there was none better, and the averages."""
    changes = {
        "ema": 0.8, "learning_rate": 3e-2, "schedule": "constant", "warmup": 0.0, "steps": 40,
        "validation": {"every": 3, "patience": 4},
    }  # fmt: skip
    whole = train(learning(tmp_path / "whole", **changes))
    end = figures(whole)["steps"]
    best = figures(whole)["best"]["steps"]
    assert best + 12 == end < 40
    config = learning(tmp_path / "x", **changes)
    for step in (best + 1, best + 4, end - 1):
        ranks.run_until(1, config, step)
        assert not (config.output / output.FINISHED).exists()
    found = train(config)
    assert evaluated(found) == evaluated(whole)
    assert {**figures(found), "seconds": 0} == {**figures(whole), "seconds": 0}


# ---- several processes


@pytest.mark.slow
@pytest.mark.parametrize("zero", [None, 3])
def test_two_processes_measure_and_keep_what_one_does(varied: Path, tmp_path: Path, zero: int | None):
    """Text among the videos, averages, and a number of processes that changes on the way."""
    held_out = ValidationConfig(share=0.3, every=2, accuracy=zero != 3, patience=None)
    settings = {"steps": 6, "validation": held_out, "ema": 0.8}
    expected = ranks.changed(ranks.recipe("stage3", varied, tmp_path), tmp_path / "one", **settings)
    ranks.run(1, *expected)
    found = ranks.changed(expected, tmp_path / "two", zero, batch_size=2)
    ranks.run_until(2, found[0], 3)
    moved = ranks.changed(found, tmp_path / "two", zero, batch_size=4)
    if zero is None:
        ranks.run_until(1, moved[0], 5)
    ranks.run(2, *found)
    ranks.assert_close(found, expected, 1e-4)
    one, two = (evaluated(config.output) for config in (expected[0], found[0]))
    assert [line["step"] for line in two] == [2, 4, 6]
    for ours, theirs in zip(two, one, strict=True):
        assert ours == pytest.approx(theirs, abs=1e-4)
    best = [config.output / "best" for config in (expected[0], found[0])]
    torch.testing.assert_close(*(load_file(path / checkpoint.WEIGHTS) for path in best), rtol=0, atol=1e-4)
