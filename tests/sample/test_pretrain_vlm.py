"""What teaches the sample's video language model lays out, sees and masks as asking a finished one does."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from examples.sample_world.make_encoders import encode_frames
from examples.sample_world.make_vlm import card, main, package, shortfalls
from examples.sample_world.pretrain_encoders import coverage
from examples.sample_world.pretrain_vlm import (
    LONG,
    SAID,
    SHORT,
    TESTED,
    Asked,
    Bank,
    Seeing,
    Sight,
    loss_of,
    make_bank,
    pretrain,
    states,
    tokens,
)
from examples.sample_world.small_language_model import build_model
from examples.sample_world.tokenizer import build_tokenizer
from langdc.backbones.chat import chat_prompt, conversation
from langdc.checkpoint import load
from langdc.encoders.image import CLIP_MEAN, CLIP_STD, ImageEncoder
from langdc.encoders.video import IMAGENET_MEAN, IMAGENET_STD, VideoEncoder
from langdc.interfaces import Backbone
from langdc.sample.questions import GROUPS, TARGET_KINDS, ask_all
from langdc.sample.scenes import as_text, caption, sample_segment, sample_video
from langdc.types import Context, FeatureGrid

TOKENIZER = build_tokenizer()
WIDTH = 64


@pytest.fixture(scope="module")
def asked() -> Asked:
    return Asked(TOKENIZER)


def test_questions_are_laid_out_as_the_chat_template_does(asked: Asked):
    rng = np.random.default_rng(0)
    for question in ask_all(rng, sample_video(rng)):
        prompt = chat_prompt(TOKENIZER, conversation(question.text, question.answer), [2], learn=True)
        ids, labels = asked.rows([(question.text, question.answer, question.kind)], LONG)
        opening, length = asked.encoder.opening, len(prompt.ids) - len(asked.encoder.opening) - 2
        assert prompt.slots[0].position == len(opening)
        assert ids[0, :length].tolist() == prompt.ids[len(opening) : -2].tolist()
        assert labels[0, :length].tolist() == prompt.labels[len(opening) + 1 : -1].tolist()


def test_questions_fit_and_see_the_video_and_themselves_only(asked: Asked):
    torch.manual_seed(0)
    model, rng = build_model(TOKENIZER, WIDTH, 2), np.random.default_rng(1)
    model.config._attn_implementation = "branches"
    short, long = asked.batch(rng, [sample_video(rng) for _ in range(2)])
    assert short.shape == (2, 2, *SHORT) and long.shape == (2, 2, *LONG)
    shown, opening = torch.randn(2, 9, WIDTH), asked.encoder.opening
    together = states(model, opening, shown, [short[0], long[0]])
    model.config._attn_implementation = "sdpa"
    embed = model.get_input_embeddings()
    for block, part in zip((short, long), together, strict=True):
        for number in (0, block.shape[2] - 1):
            words = torch.cat([torch.tensor(opening).expand(2, -1), block[0][:, number]], 1)
            parts = embed(words).split([len(opening), block.shape[3]], 1)
            alone = model.model(inputs_embeds=torch.cat([parts[0], shown, parts[1]], 1)).last_hidden_state
            torch.testing.assert_close(part[:, number], alone[:, -block.shape[3] :], rtol=1e-4, atol=1e-4)


def test_tokens_say_where_they_were_seen():
    torch.manual_seed(0)
    rng = np.random.default_rng(2)
    bank = Bank([sample_segment(rng) for _ in range(5)], torch.randn(5, 2, 4, 4, 4, 6).half())
    scenes, features = bank.draw(rng, 3)
    assert features.shape == (3, 2, 16, 4, 4, 6)
    for video, grids in zip(scenes, features, strict=True):
        for number, segment in enumerate(video):
            shown = bank.features[bank.segments.index(segment)].float()
            assert torch.equal(grids[:, 4 * number : 4 * number + 4], shown)
    sight = Sight(6, WIDTH)
    grids = sight(features)
    alike = sight(torch.zeros_like(features))[0]
    assert len(torch.unique(alike.flatten(0, 3).round(decimals=4), dim=0)) == alike[..., 0].numel()
    counts = {"whole": 512, 0.25: 128, "pool": 128, "segment": 128}
    assert {layout: tokens(grids, layout, rng).shape[1] for layout in counts} == counts
    whole, some = tokens(grids, "whole", rng)[0], tokens(grids, 0.25, rng)[0]
    places = [int((whole == token).all(1).nonzero()[0]) for token in some]
    assert places == sorted(set(places))
    torch.testing.assert_close(tokens(grids, "pool", rng)[0][:4].mean(0), whole[:16].mean(0))
    torch.testing.assert_close(tokens(grids, "segment", rng)[0][0], whole[:64:16].mean(0))


def test_captions_are_read_in_place_of_tokens(asked: Asked):
    """Videos whose captions are of one length, with no question that captions cannot answer."""
    torch.manual_seed(0)
    rng, fullness, videos, ids = np.random.default_rng(3), set(), [], torch.empty(0)
    segments = [sample_segment(rng, objects=number % 5) for number in range(40)]
    bank = Bank(segments, torch.zeros(40, 2, 4, 4, 4, 6).half())
    for _ in range(8):
        videos, _ = bank.draw(rng, 6, alike=True)
        ids = asked.words(videos)
        for video, row in zip(videos, ids, strict=True):
            assert str(TOKENIZER.decode(row)).split() == as_text([caption(segment) for segment in video]).split()
        fullness.add(tuple(sorted(map(len, videos[0]))))
        assert {tuple(sorted(map(len, video))) for video in videos} == {tuple(sorted(map(len, videos[0])))}
    assert len(fullness) > 4
    kinds = {turn[2] for turn in asked.draw(rng, videos[0], 3, SAID)}
    assert kinds and not kinds & set(GROUPS["unsaid"])
    seeing = Seeing(TOKENIZER, bank, 128, 2)
    with torch.no_grad():
        words = seeing.show(ids, "words", rng)
    assert torch.equal(words, seeing.model.get_input_embeddings()(ids))
    assert not torch.equal(seeing.show(ids, "words", rng, 0.5), words)


def test_words_are_trained_on_as_tokens_are(asked: Asked, tmp_path: Path, monkeypatch):
    torch.manual_seed(0)
    for name, value in {"EARLY": 0, "HELD": 0, "TESTED": ("words",), "VIDEOS": 2, "LAYOUTS": {"words": 1.0}}.items():
        monkeypatch.setattr(f"examples.sample_world.pretrain_vlm.{name}", value)
    bank = Bank([sample_segment(np.random.default_rng(n)) for n in range(30)], torch.randn(30, 2, 4, 4, 4, 6).half())
    seeing = Seeing(TOKENIZER, bank, 128, 2)
    before = seeing.model.get_input_embeddings().weight.clone()
    pretrain(seeing, asked, bank, bank, tmp_path, steps=1, size=2, peak=1e-3, seed=0)
    assert not torch.equal(before, seeing.model.get_input_embeddings().weight)
    assert set(json.loads((tmp_path / "log.jsonl").read_text())["accuracy"]["words"]) <= set(SAID)


@pytest.fixture(scope="module")
def real() -> Bank:
    """Forty segments as the packaged encoders see them."""
    encoders = (
        encode_frames(ImageEncoder(), CLIP_MEAN, CLIP_STD),
        encode_frames(VideoEncoder(), IMAGENET_MEAN, IMAGENET_STD),
    )
    return make_bank(encoders, 40, 0)


def test_reading_begins_by_looking_up_what_a_word_says(real: Bank, asked: Asked):
    """At the colour in a question, before any training, a head attends mostly to the object of that colour."""
    torch.manual_seed(0)
    seeing, index = Seeing(TOKENIZER, real, 128, 2), [n for n, segment in enumerate(real.segments) if len(segment) > 1]
    attention, masses, shares = seeing.model.model.layers[0].self_attn, [], []
    for number in index:
        segment = real.segments[number]
        grids = seeing.sight(real.features[number][None].float().repeat(1, 1, 4, 1, 1, 1))[:, :, :4]
        shown = tokens(grids, "whole", np.random.default_rng(0))[0]
        for place, thing in enumerate(segment):
            word = seeing.model.get_input_embeddings()(torch.tensor(asked.encoder.ids(thing.colour)))
            rows = seeing.model.model.layers[0].input_layernorm(torch.cat([shown, word]))
            query, key = (f(rows).unflatten(-1, (4, -1))[:, 2] for f in (attention.q_proj, attention.k_proj))
            weight = (key @ query[-1] / 32**0.5).softmax(-1)[:-1].unflatten(0, (2, 4, 4, 4))
            under = torch.from_numpy(coverage(segment, 4)[place]) > 0.1
            masses.append((weight * under).sum().item())
            shares.append(under.float().mean().item())
    assert np.mean(masses) > 5 * np.mean(shares), "the object's tokens are far ahead of their share"


def test_reading_words_begins_by_looking_up_too(real: Bank, asked: Asked):
    """Before any training a colour in a question attends most to that colour in a caption and the words behind it."""
    torch.manual_seed(0)
    seeing = Seeing(TOKENIZER, real, 128, 2)
    first, second = seeing.model.model.layers
    text = "red square left ; blue ring still ; green cross up ;"
    ids = torch.tensor([asked.encoder.ids(f"{text} what shape is the blue object ?")])
    words = TOKENIZER.convert_ids_to_tokens(ids[0].tolist())
    positions = seeing.model.model.rotary_emb(torch.zeros(1, 1), torch.arange(ids.shape[1])[None])
    later = torch.full((ids.shape[1],) * 2, float("-inf")).triu(1)[None, None]
    first.self_attn.config._attn_implementation = "eager"
    with torch.no_grad():
        hidden = first(seeing.model.get_input_embeddings()(ids), attention_mask=later, position_embeddings=positions)
        rows = second.input_layernorm(hidden)
        weight = second.self_attn(rows, position_embeddings=positions, attention_mask=later)[1][0, 2]
    asks = max(place for place, word in enumerate(words) if word.endswith("blue"))
    seen = weight[asks, : len(asked.encoder.ids(text))]
    assert set(seen.topk(3).indices.tolist()) == {4, 5, 6}, "blue ring still"


def test_a_packed_model_sees_what_was_trained(real: Bank, asked: Asked, tmp_path):
    torch.manual_seed(0)
    seeing = Seeing(TOKENIZER, real, 128, 2)
    for table in seeing.sight.places.values():
        torch.nn.init.normal_(table)
    package(seeing, asked, tmp_path, {"stage": "pretrained"})
    model = load(tmp_path / "vlm")
    assert isinstance(model.backbone, Backbone)
    patches = torch.randn(2, 16, 8, 8, 96, generator=torch.Generator().manual_seed(1))
    grids = {name: FeatureGrid(values) for name, values in zip(("image", "video"), patches, strict=True)}
    with torch.no_grad():
        video = model.backbone.project([grids], [torch.arange(16.0)], frozenset({"projected"}))
        found = model.compressor(video, Context()).tokens[0].values
        pooled = torch.nn.functional.avg_pool2d(patches.flatten(0, 1).movedim(-1, 1), 2).movedim(1, -1)
        wanted = tokens(seeing.sight(pooled.unflatten(0, (2, 16))[None]), "whole", np.random.default_rng(0))[0]
        torch.testing.assert_close(found, wanted, atol=5e-3, rtol=5e-3)
        trained, packed = seeing.model.float().state_dict(), model.backbone.language_model.state_dict()
    assert all(torch.equal(value, packed[name]) for name, value in trained.items())
    assert model.backbone.tokenizer.get_vocab() == TOKENIZER.get_vocab()


def test_what_looks_things_up_is_held_at_first(real: Bank, asked: Asked, tmp_path: Path, monkeypatch):
    torch.manual_seed(0)
    monkeypatch.setattr("examples.sample_world.pretrain_vlm.HELD", 1)
    monkeypatch.setattr("examples.sample_world.pretrain_vlm.TESTED", ())
    seeing, before = Seeing(TOKENIZER, real, 128, 3), {}
    for steps, held in ((1, True), (2, False)):
        before = {name: value.clone() for name, value in seeing.state_dict().items()}
        pretrain(seeing, asked, real, real, tmp_path, steps=steps, size=2, peak=1e-3, seed=0, flat=True)
        changed = {name for name, value in seeing.state_dict().items() if not torch.equal(value, before[name])}
        assert "model.model.layers.2.self_attn.q_proj.weight" in changed
        held_ones = {"sight.projectors.0.weight", "model.model.layers.0.self_attn.q_proj.weight"}
        assert not changed & held_ones if held else held_ones <= changed


def test_the_training_goes_on_where_it_was_stopped(tmp_path, monkeypatch, capsys):
    """Two steps at once are one step and another one after a restart; what is missing of the targets is said."""
    monkeypatch.setattr("examples.sample_world.pretrain_vlm.TESTED", ("whole", "pool"))
    monkeypatch.setattr("examples.sample_world.make_vlm.TEST", 8)
    monkeypatch.setattr("examples.sample_world.pretrain_vlm.VIDEOS", 2)
    for folder, parts in (("once", [2]), ("twice", [1, 2])):
        for steps in parts:
            given = ["--work", tmp_path / folder, "--out", tmp_path / folder / "out", "--steps", steps]
            sizes = ["--segments", 8, "--size", 2, "--layers", 2, "--flat"]
            assert main([str(word) for word in [*given, *sizes]]) == 1
    assert "said from whole" in capsys.readouterr().out
    states = [torch.load(tmp_path / folder / "training.pt") for folder in ("once", "twice")]
    assert states[0]["step"] == states[1]["step"] == 2
    assert all(torch.equal(value, states[1]["seeing"][name]) for name, value in states[0]["seeing"].items())


def test_what_is_missing_of_the_targets():
    found = {layout: {kind: 0.9 for kinds in GROUPS.values() for kind in kinds} for layout in TESTED}
    assert shortfalls({str(layout): each for layout, each in found.items()}) == []
    found["pool"] = {**found["pool"], "first": 0.5, "larger": 0.5}
    assert shortfalls(found) == ["unsaid from pool: 74.0 %, wanted 85 %"]
    del found["words"]["first"]
    rows = {row.split(" | ")[0]: row for row in card([{"step": 10, "accuracy": found}], 4, 8).splitlines()}
    assert rows["| words"].count("90") == len(TARGET_KINDS) - 1 and rows["| words"].count(" - ") == 1


def test_a_step_teaches(asked: Asked):
    torch.manual_seed(0)
    rng, model = np.random.default_rng(3), build_model(TOKENIZER, WIDTH, 1)
    model.config._attn_implementation = "branches"
    bank, sight = (
        Bank([sample_segment(rng) for _ in range(4)], torch.randn(4, 2, 4, 4, 4, 6)),
        Sight(6, WIDTH),
    )
    scenes, features = bank.draw(rng, 2)
    questions, losses = asked.batch(rng, scenes), []
    optimizer = torch.optim.AdamW([*model.parameters(), *sight.parameters()], lr=3e-3)
    for _ in range(6):
        loss = loss_of(model, asked.encoder.opening, tokens(sight(features), "segment", rng), questions)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]
    assert all(parameter.grad is not None for parameter in sight.parameters())
