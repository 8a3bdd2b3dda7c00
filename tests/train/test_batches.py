"""From records to batches: frames, prompts, draws, blank videos, padding, and encoders that run in the step."""

from pathlib import Path

import pytest
import torch
from torch import nn

from langdc.backbones.chat import IGNORED, conversation
from langdc.compressors.pool import Pool
from langdc.data.records import QuestionRecord, Record, read_records, write_records
from langdc.pipeline import VideoLM
from langdc.train.objectives import objectives
from langdc.train.samples import read_samples
from langdc.train.trainable import unfreeze
from tests import tiny
from tests.train import small


def written(path: Path, *records: dict) -> str:
    """A file of records about the first video of the sample."""
    video = str(small.folder() / read_records(small.folder() / "train.jsonl")[0].video)  # pyright: ignore[reportOperatorIssue]
    write_records(path, [Record.model_validate({"video": video, **record}) for record in records])
    return str(path)


def test_frames_are_those_of_use():
    model = small.langdc()
    data = small.data_of(model, small.run_config(model, "train", "images"))
    lm = VideoLM(model)
    for sample in data.samples:
        media = sample.record.media_path(small.folder())
        assert sample.specs == (lm.frame_spec(media),)


def test_options_and_context_are_asked_as_in_evaluation(tmp_path: Path):
    model = tiny.model("pool")
    asked = {"kind": "k", "question": "what is it ?", "answer": "B", "options": ["ring", "square"], "context": "red ."}
    data = small.data_of(
        model, small.run_config(model, written(tmp_path / "r.jsonl", {"id": "a", "questions": [asked]}))
    )
    (prompt,) = small.batch_of(data)["batch"].prompts
    text = "red .\nwhat is it ?\nA. ring\nB. square\nAnswer with the option's letter from the given choices directly."
    assert QuestionRecord.model_validate(asked).prompt() == text
    expected = model.backbone.prompt(conversation(text, "B"), learn=True)
    assert torch.equal(prompt.ids, expected.ids) and torch.equal(prompt.labels, expected.labels)


def test_questions_that_share_a_video_have_the_losses_of_separate_ones():
    model = tiny.model("pool")
    one, many = (small.data_of(model, small.run_config(model, questions_per_video=count)) for count in (1, 3))
    sample = one[0]
    drawn = many.drawn(sample)
    assert len(drawn) == 3 and one.drawn(sample) == drawn[:1]
    together, learner = small.batch_of(many, 0), small.learner_of(many)
    assert len(together["batch"].prompts) == 1 and together["batch"].prompts[0].sequence_id is not None
    learner(**together)
    total, count = learner.parts["answer"]
    assert count == together["counts"]["answer"]
    apart = 0.0
    for question in drawn:
        one.drawn = lambda _, question=question: [question]
        learner(**small.batch_of(one, 0))
        apart += float(learner.parts["answer"][0])
    assert float(total) == pytest.approx(apart, rel=1e-5)


def test_draws_depend_on_seed_epoch_and_record_alone():
    model = tiny.model("pool")
    data = small.data_of(model, small.run_config(model))
    first = [data.drawn(sample) for sample in data.samples]
    assert [data.drawn(sample) for sample in reversed(data.samples)][::-1] == first
    data.epoch = 1
    assert [data.drawn(sample) for sample in data.samples] != first


class Guided(Pool):
    """Scales what a pool keeps by the question."""

    needs = frozenset({"projected", "question"})


def test_a_guided_compressor_gets_the_question_of_each_sequence():
    model = tiny.model("pool")
    model.compressor = Guided(sides=[3, 2])
    with pytest.raises(ValueError, match=r"Guided compresses a video for one question.*Set it to 1"):
        small.data_of(model, small.run_config(model, questions_per_video=2))
    data = small.data_of(model, small.run_config(model, "train", "text"))
    batch = small.batch_of(data)["batch"]
    asked = [data.drawn(sample)[0].question for sample in data.samples if sample.specs]
    assert [ids.tolist() for ids in batch.questions] == [model.backbone.tokenizer(text)["input_ids"] for text in asked]
    found = model.features(batch)
    assert [len(video.question) for video in found] == [len(ids) for ids in batch.questions]
    text = small.batch_of(data, len(data) - 1)["batch"]
    assert text.blank and len(model.features(text)) == 1


@pytest.mark.parametrize(("compressor", "settings"), [("langdc", {}), ("ldpv2", {"sides": [2, 2]})])
@pytest.mark.parametrize("objective", ["answer", "distill"])
def test_batches_of_text_make_the_calls_of_others_and_learn_nothing_of_the_blank_video(
    compressor: str, settings: dict, objective: str
):
    """Calls of every module, also those without weights: under ZeRO-3 ranks that differ in them would hang."""
    model = tiny.model(compressor, **settings)
    unfreeze(model, ["compressor.post_projector.*" if compressor == "langdc" else "compressor.*"])
    data = small.data_of(model, small.run_config(model, "train", "text", objective=objective))
    learner, called = small.learner_of(data), []
    for name, part in model.named_modules():
        part.register_forward_pre_hook(lambda *_, name=name: called.append(name))

    def calls(*indices: int) -> list[str]:
        called.clear()
        learner(**small.batch_of(data, *indices))["loss"].backward()
        return list(called)

    text = len(data) - 1
    assert calls(0, 1) == calls(0, text) == calls(text, text - 1)
    model.zero_grad()
    calls(text)
    assert all(p.grad is not None and not p.grad.any() for p in model.parameters() if p.requires_grad)
    assert learner.parts.keys() == {objective}


def test_padding_makes_all_calls_and_counts_for_nothing():
    model = small.langdc()
    unfreeze(model, ["compressor.*"])
    data = small.data_of(model, small.run_config(model))
    padded = data.collate([data[-3]])
    assert data[-3].record == data[2].record and padded["counts"] == {}
    assert all((prompt.labels == IGNORED).all() for prompt in padded["batch"].prompts)
    learner = small.learner_of(data)
    loss = learner(**padded)["loss"]
    loss.backward()
    assert loss == 0 and learner.figures["samples"] == 0 and learner.flops == 0
    assert all(p.grad is None or not p.grad.any() for p in model.parameters())


@pytest.mark.parametrize(
    ("record", "changes", "message"),
    [
        (
            {"questions": [{"kind": "k", "question": "q ?", "answer": "red"}]},
            {},
            r"line 1 \(id 'a'\) has nothing",
        ),
        ({"segments": [{"caption": "red"}]}, {"objective": "compress"}, r"has 1 segments; its media is cut into 4"),
        ({"segments": [{"caption": "red"}]}, {}, "can be used for this objective"),
        (
            {"questions": [{"kind": "k", "question": "q ?", "answer": "r"}]},
            {"kinds": ["x"]},
            r"with kinds \['x'\]\. There is: k\.",
        ),
        ({"questions": [{"kind": "k", "question": "q ?"}]}, {}, "a question without an answer, which this objective"),
        (
            {"questions": [{"kind": "k", "question": "q ?", "answer": ""}]},
            {"objective": "distill"},
            "let the model reply",
        ),
    ],
)
def test_records_that_cannot_be_learned_from_are_refused(tmp_path: Path, record: dict, changes: dict, message: str):
    model = small.langdc()
    file = written(tmp_path / "r.jsonl", {"id": "a", **record})
    with pytest.raises(ValueError, match=message):
        small.data_of(model, small.run_config(model, file, **changes))


def test_distillation_with_own_replies_needs_no_answers(tmp_path: Path):
    model = small.langdc()
    file = written(tmp_path / "r.jsonl", {"id": "a", "questions": [{"kind": "k", "question": "q ?"}]})
    objective = {"name": "distill", "replies": "model"}
    assert len(small.data_of(model, small.run_config(model, file, objective=objective, targets="none"))) == 1


def test_without_targets_the_compressor_works_as_in_use():
    model = small.langdc()
    unfreeze(model, ["compressor.post_projector.*"])
    data = small.data_of(model, small.run_config(model, targets="none"))
    batch = small.batch_of(data, 0)["batch"]
    states = batch.targets["states"][0]
    used = model.compressor(model.features(small.batch_of(online(model, targets="none"), 0)["batch"]))
    assert set(batch.targets) == {"states"}
    for found, expected in zip(states, used.states[0], strict=True):
        torch.testing.assert_close(found, expected)


def online(model, *files: str, **changes):
    data = small.data_of(model, small.run_config(model, *files, feature_memory=0, **changes))
    assert data.online and data.states is None
    return data


@pytest.mark.parametrize(
    ("objective", "trained"),
    [("compress", "compressor.*"), ("answer", "compressor.post_projector.*"), ("distill", "backbone.projectors.*")],
)
def test_encoding_in_the_step_learns_the_same(objective: str, trained: str):
    base = {"base": {"name": "pool", "sides": [3, 2]}} if objective == "distill" else {}
    results = []
    for memory in (16, 0):
        model = small.langdc(**base)
        unfreeze(model, [trained])
        config = small.run_config(model, "images", "train", "text", objective=objective, feature_memory=memory)
        data = small.data_of(model, config)
        assert data.online == (memory == 0)
        learner = small.learner_of(data)
        for indices in ((0, 4), (len(data) - 1,)):
            loss = learner(**small.batch_of(data, *indices))["loss"]
            loss.backward()
            results.append(loss.item())
        results += [p.grad.norm().item() for p in model.parameters() if p.grad is not None]
    kept, encoded = results[: len(results) // 2], results[len(results) // 2 :]
    assert len(kept) > 2 and encoded == pytest.approx(kept, rel=1e-4, abs=1e-7)


def test_trained_encoders_run_in_the_step():
    model = tiny.model("pool")
    unfreeze(model, ["backbone.encoders.image.*"])
    data = small.data_of(model, small.run_config(model))
    assert data.online
    small.learner_of(data)(**small.batch_of(data, 0))["loss"].backward()
    grads = [p.grad for p in model.backbone.encoders.parameters() if p.requires_grad]
    assert any(grad is not None and grad.any() for grad in grads)


def test_a_file_that_cannot_be_read_is_named_when_its_batch_comes(tmp_path: Path):
    model = tiny.model("pool")
    video = tmp_path / "v.mp4"
    first = read_records(small.folder() / "train.jsonl")[0]
    video.write_bytes((small.folder() / str(first.video)).read_bytes())
    asked = [{"kind": "k", "question": "q ?", "answer": "red"}]
    write_records(tmp_path / "r.jsonl", [Record.model_validate({"id": "a", "video": "v.mp4", "questions": asked})])
    data = online(model, str(tmp_path / "r.jsonl"))
    video.write_bytes(b"no video")
    with pytest.raises(ValueError, match=r"v\.mp4"):
        small.batch_of(data)


def test_frozen_encoders_and_an_absent_language_model_are_left_out_of_the_engine():
    model = small.langdc()
    unfreeze(model, ["compressor.post_projector.*"])
    data = small.data_of(model, small.run_config(model))
    learner, batch = small.learner_of(data), small.batch_of(data)
    names, before = [n for n, _ in model.named_parameters()], learner(**batch)["loss"]
    with learner.engine_parts():
        inside = [n for n, _ in model.named_parameters()]
        assert not any("encoders" in name for name in inside) and len(inside) > 10
        assert isinstance(model.backbone.encoders["image"], nn.Module)
        assert learner(**batch)["loss"] == before
    assert [n for n, _ in model.named_parameters()] == names


def test_a_kind_that_no_question_has_is_named_with_the_nearest(caplog: pytest.LogCaptureFixture) -> None:
    model, answer = tiny.model("pool"), objectives.build("answer")
    with pytest.raises(ValueError, match=r"with kinds \['shapes'\]\. Did you mean 'shape'\? There is: .*count"):
        read_samples(model, answer, small.run_config(model, kinds=["shapes"]).train)
    found = read_samples(model, answer, small.run_config(model, kinds=["count", "shapes"]).train)
    assert found and "there is no question of the kind 'shapes'. Did you mean 'shape'?" in caplog.text
