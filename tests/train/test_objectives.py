"""What is learned: the losses of each objective against the formula, and refusals."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from langdc.interfaces import Objective
from langdc.train.objectives import objectives
from langdc.train.objectives.distill import _without_adapters
from langdc.train.trainable import unfreeze
from langdc.types import Context
from tests import tiny
from tests.train import small


def test_members_are_found_by_their_files():
    assert {"answer", "align", "compress", "distill"} <= set(objectives.names())
    with pytest.raises(ValueError, match=r"'answers'.*Did you mean 'answer'"):
        objectives.build("answers")
    with pytest.raises(ValueError, match="temperature"):
        objectives.build("distill", temperatur=2.0)


def test_answer_is_the_cross_entropy_of_the_replies_and_own_losses_join_it():
    model = unfrozen(small.langdc(), "compressor.*")
    data = small.data_of(model, small.run_config(model))
    learner, batch = small.learner_of(data, {"caption": 0.5}), small.batch_of(data)
    loss = learner(**batch)["loss"]
    output = model(batch["batch"], learner.context())
    expected = F.cross_entropy(output.logits, output.labels)
    caption, count = output.compressed.losses["caption"]
    assert batch["counts"] == {"answer": len(output.labels), "caption": count}
    torch.testing.assert_close(loss, expected + 0.5 * caption / count)


def test_a_loss_with_weight_0_is_not_computed():
    model = unfrozen(small.langdc(), "compressor.*")
    learner = small.learner_of(small.data_of(model, small.run_config(model)), {"caption": 0.0})
    assert learner.wanted == {"tokens"} and learner.names == ["answer"]


def test_compress_needs_no_language_model():
    torch.manual_seed(0)
    model = type(small.langdc())(tiny.config("langdc", max_soft_tokens=32), text=False)
    unfreeze(model, ["compressor.projectors.*"])
    data = small.data_of(model, small.run_config(model, "images", "text", objective="compress"))
    assert len(data) == 4, "text is left out"
    learner = small.learner_of(data)
    learner(**small.batch_of(data))["loss"].backward()
    assert list(learner.parts) == ["caption"] and learner.figures["segments"] == 4


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_distill_is_the_divergence_from_the_uncompressed_model(temperature: float):
    model = small.with_adapters(tiny.model("pool", sides=[2, 1]), "backbone.projectors.*")
    config = small.run_config(model, objective={"name": "distill", "temperature": temperature})
    data = small.data_of(model, config)
    learner, batch = small.learner_of(data), small.batch_of(data)
    found = learner(**batch)["loss"]
    with torch.no_grad(), _without_adapters(model.backbone.text_model):
        videos = model.features(batch["batch"])
        teacher = model(batch["batch"], Context(), objectives.build("distill").teacher, videos).logits
    student = model(batch["batch"]).logits
    log_p, log_q = (F.log_softmax(each / temperature, -1) for each in (teacher, student))
    expected = (log_p.exp() * (log_p - log_q)).sum(-1).mean() * temperature**2
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
    found.backward()
    adapters = {n: p for n, p in model.named_parameters() if ".lora_" in n}
    assert all(p.requires_grad and p.grad is not None for p in adapters.values()), "the teacher leaves them trainable"


def test_distilling_what_is_not_compressed_is_nothing_to_learn():
    model = tiny.model("identity")
    data = small.data_of(model, small.run_config(model, "train", "text", objective="distill"))
    assert small.learner_of(data)(**small.batch_of(data))["loss"] == 0


def test_distill_refuses_to_train_the_teacher(tmp_path: Path):
    model = unfrozen(tiny.model("pool"), "backbone.language_model.*")
    data = small.data_of(model, small.run_config(model, objective="distill"))
    with pytest.raises(ValueError, match=r"embed_tokens\.weight is trained"):
        data.objective.prepare(model, data, tmp_path)


def test_replies_of_the_uncompressed_model_are_written_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    model = unfrozen(tiny.model("pool", sides=[2, 1]), "backbone.projectors.*")
    settings = {"name": "distill", "replies": "model", "max_new_tokens": 3}
    data = small.data_of(model, small.run_config(model, "test", "text", objective=settings, kinds=["say", "color"]))
    data.objective.prepare(model, data, tmp_path)
    asked = {(s.record.id, q.prompt()) for s in data.samples for q in s.record.questions}
    assert data.replies.keys() == asked and len(asked) >= 4
    sample = data.samples[0]
    question = data.drawn(sample)[0]
    known = data.replies[sample.record.id, question.prompt()]
    labels = data.collate([sample])["batch"].prompts[0].labels
    learned = data.model.backbone.tokenizer.decode(labels[labels >= 0], skip_special_tokens=True)
    assert learned.strip() == known.strip()
    monkeypatch.setattr(type(data.objective), "_reply", lambda *_: pytest.fail("written again"))
    again = small.data_of(model, data.config)
    again.objective.prepare(model, again, tmp_path)
    assert again.replies == data.replies


def test_losses_that_do_not_exist_are_refused():
    model = tiny.model("pool")
    data = small.data_of(model, small.run_config(model))
    with pytest.raises(ValueError, match=r"no loss caption\. There is: answer"):
        small.learner_of(data, {"caption": 1.0})
    with pytest.raises(ValueError, match="Pool has none that is weighed"):
        small.learner_of(small.data_of(model, small.run_config(model, objective="compress")))


def test_a_loss_that_was_not_declared_is_refused():
    class Loose(Objective):
        names = frozenset({"answer"})

        def losses(self, model, batch, context):
            return {"other": (torch.ones(()), 1)}

    model = tiny.model("pool")
    data = small.data_of(model, small.run_config(model))
    data.objective = Loose()
    with pytest.raises(ValueError, match="other were returned and not declared"):
        small.learner_of(data)(**small.batch_of(data))


def unfrozen(model, *patterns: str):
    unfreeze(model, patterns)
    return model
