"""The model class, asked as lmms-eval asks it."""

from importlib import import_module
from pathlib import Path

import pytest
from PIL import Image

from langdc.backbones.chat import conversation

WHY = "lmms-eval is not installed here; `make test-lmms-eval` runs this"
Instance = pytest.importorskip("lmms_eval.api.instance", reason=WHY).Instance
LangDCModel = import_module("langdc.tools.lmms_eval.model").LangDCModel
QUESTION = "what shape is the red object ?"


@pytest.fixture(scope="module")
def model(folder: Path) -> LangDCModel:
    made = LangDCModel("sample:langdc", device="cpu")
    made.task_dict = {"t": {"test": [[str(folder / "a.mp4")], [str(folder / "b.mp4")], []]}}
    return made


def request(doc_id: int, visuals=None, text: str = QUESTION, **settings) -> Instance:
    """One request; what is shown is the document itself, or what `visuals` makes of it."""
    shown = visuals or (lambda doc: doc)
    arguments = (text, {"max_new_tokens": 6, **settings}, shown, doc_id, "t", "test")
    return Instance("generate_until", arguments, 0, {"task": "t", "doc_id": doc_id, "repeats": 1})


def test_several_visuals_are_put_in_order(model: LangDCModel, folder: Path):
    both = [str(folder / "a.mp4"), str(folder / "b.mp4")]
    given = model.generate_until([request(0, lambda _: both)])
    messages = conversation(QUESTION)
    messages[0]["content"].insert(0, {"type": "video"})
    videos = [model.lm.open(path) for path in both]
    assert given == [model.lm.converse(messages, videos, max_new_tokens=6).text]


def test_a_picture_in_memory_is_a_picture_file(model: LangDCModel, folder: Path):
    picture = folder / "a.png"
    given = model.generate_until([request(0, lambda _: Image.open(picture)), request(0, lambda _: [str(picture)])])
    assert given == [model.lm.ask(picture, QUESTION, max_new_tokens=6).text] * 2


def test_consecutive_questions_open_a_video_once(model: LangDCModel, monkeypatch: pytest.MonkeyPatch):
    opened, real = [], model.lm.open
    monkeypatch.setattr(model.lm, "open", lambda path: opened.append(Path(path).name) or real(path))
    model._open.clear()
    model.generate_until([request(0), request(0), request(1), request(1), request(0)])
    assert opened == ["a.mp4", "b.mp4", "a.mp4"]


def test_two_pictures_in_memory_are_not_mistaken_for_each_other(model: LangDCModel, folder: Path):
    one = Image.open(folder / "a.png")
    other = Image.new("RGB", one.size)
    seen, real = [], model.lm.converse
    model.lm.converse = lambda messages, videos, **options: (seen.extend(videos), real(messages, videos, **options))[1]
    try:
        model.generate_until([request(0, lambda _: [one]), request(0, lambda _: [other])])
    finally:
        del model.lm.converse
    assert not seen[0].frames.pixels.equal(seen[1].frames.pixels) and not seen[1].frames.pixels.any()


def test_replies_end_where_the_task_says(model: LangDCModel):
    whole = model.generate_until([request(0)])[0]
    assert len(whole) > 1
    assert model.generate_until([request(0, until=[whole[1:]])]) == [whole[0]]


def test_sampling_follows_the_temperature(model: LangDCModel):
    hot = {"temperature": 1e4, "max_new_tokens": 8}
    assert len(set(model.generate_until([request(0, **hot) for _ in range(4)]))) > 1
    cold = {"temperature": 0, "do_sample": True}
    assert len(set(model.generate_until([request(0, **cold) for _ in range(4)]))) == 1


def test_what_cannot_be_answered_is_told_and_the_rest_is_answered(model: LangDCModel, monkeypatch: pytest.MonkeyPatch):
    sound = request(1, lambda _: [{"array": [0.0], "sampling_rate": 16000}])
    lost = request(2, lambda _: ["lost.mp4"])
    told = []
    monkeypatch.setattr(import_module(LangDCModel.__module__).log, "error", lambda s, *of: told.append(s % of))
    replies = model.generate_until([sound, request(0), lost])
    assert replies == ["", model.generate_until([request(0)])[0], ""]
    assert "t, document 1 has no reply: A visual is a dict" in told[0] and "lost.mp4: there is no such" in told[1]
    assert told[2] == "2 of 3 requests have no reply; they count as wrong."


def test_what_is_not_offered_says_so(model: LangDCModel):
    for kind in ("loglikelihood", "generate_until_multi_round"):
        with pytest.raises(NotImplementedError, match=f"this one has {kind}"):
            getattr(model, kind)([])


def test_batches_are_refused():
    with pytest.raises(ValueError, match="one by one"):
        LangDCModel("sample:langdc", batch_size=4)


def test_a_setting_that_there_is_not_is_named():
    with pytest.raises(ValueError, match=r"has no setting 'kep'\. Did you mean 'keep'"):
        LangDCModel("sample:vlm", compressor="vidcom2", kep=0.25)


def test_memory_is_given_back():
    model = LangDCModel("sample:langdc", device="cpu")
    model.clean()
    assert not hasattr(model, "lm")
