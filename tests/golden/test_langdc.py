"""Agreement with the LangDC authors' code, from the checkpoint that the converter makes of a release with tiny random
weights (`langdc_ckpt/`); what the numbers are, README.md here says.

With soft_token="released", the setting of converted checkpoints, tokens, logits and replies are the authors', padding
included; with the others segments follow each other without padding and end tokens have no soft token. The dual form
reads the layer that it is told to (upstream always the embeddings, layer 0).
"""

from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from langdc import checkpoint
from langdc.backbones.inputs import read_prompt
from langdc.captioner import SoftToken
from langdc.convert.assemble import Branch, Options, convert
from langdc.generate import Continuation
from langdc.model import VideoModel
from langdc.types import Compressed, Context, FeatureGrid, Prompt, Slot, TextInputs, VideoBatch, VideoFeatures

TOLERANCE: dict[str, Any] = {"atol": 1e-4, "rtol": 0.0}
END, LAYERS = [67, 256], (-1, -3)
RELEASE = Path(__file__).with_name("langdc_ckpt")
HEADS = 4  # of its video encoder


@cache
def golden() -> dict[str, Tensor]:
    return load_file(Path(__file__).with_name("langdc.safetensors"))


@cache
def converted(branch: Branch) -> Path:
    """The checkpoint that the converter makes of the authors' layout, in one form: "pool", "cap" or "dual"."""
    out = Path(mkdtemp(prefix="langdc")) / branch
    convert("langdc", RELEASE, out, Options(heads=HEADS, branch=branch))
    return out


@cache
def build(kind: Branch, layer: int = -1, soft_token: SoftToken = "at", most: int = 12) -> VideoModel:
    """That checkpoint as loaded, with the recorded prompt and limit in place of the released ones."""
    model = checkpoint.load(converted(kind))
    if kind != "pool":
        captioner: Any = model.compressor.captioner
        assert captioner.end == END
        ids = golden()["in.cap_ids"][0].long()
        captioner.before, captioner.after = ids[:6], ids[10:17]
        captioner.layer, captioner.soft_token, captioner.max_soft_tokens = layer, soft_token, most
    return model


@cache
def encoded() -> dict[str, FeatureGrid]:
    encoders: Any = build("pool").backbone.encoders
    frames = {"image": "in.context_images", "video": "in.images"}
    with torch.no_grad():
        return {n: FeatureGrid(encoders[n].run(golden()[key].float(), [16])) for n, key in frames.items()}


def video(model: VideoModel) -> VideoFeatures:
    return model.backbone.project([encoded()], [torch.arange(16)], model.compressor.needs)[0]


def prompt() -> Prompt:
    """The golden question without its placeholders, whose place is one slot."""
    ids, labels = golden()["in.input_ids"][0].long(), golden()["in.vqa_labels"][0].long()
    words = ids >= 0
    return Prompt(ids[words], labels[words], (Slot(int((~words).nonzero()[0]), 0),))


def compressed(model: VideoModel, **targets: list[Tensor]) -> Compressed:
    """The golden video's tokens, of given `captions` or `states`, else of captions that are written."""
    wanted = frozenset({"tokens", "states", "caption"})
    return model.compress([video(model)], Context(targets={name: [of] for name, of in targets.items()}, wanted=wanted))


def batch(asked: Prompt | None = None) -> VideoBatch:
    return VideoBatch([encoded()], [torch.arange(16)], [asked or prompt()], [[0]])


def inputs(model: VideoModel, **targets: list[Tensor]) -> TextInputs:
    return model.inputs(batch(), compressed(model, **targets).tokens)


def captions() -> list[Tensor]:
    rows, labels = golden()["in.cap_ids"].long(), golden()["in.cap_labels"]
    return [row[label != -100] for row, label in zip(rows, labels, strict=True)]


def written(name: str) -> list[Tensor]:
    """Reference captions up to, and without, their end token."""
    found = []
    for row in golden()[name].long():
        ends = torch.isin(row, torch.tensor(END)).nonzero()
        found.append(row[: int(ends[0])] if len(ends) else row)
    return found


def close(found: Tensor, name: str, every: int = 1) -> None:
    torch.testing.assert_close(found[:, ::every], golden()[name], **TOLERANCE)


def visible(name: str) -> Tensor:
    """The rows of the prompt that upstream's mask lets the backbone attend to [M]."""
    return golden()[f"{name}.attention_mask"][0]


def check(model: VideoModel, given: TextInputs, name: str) -> None:
    """The mask and the last 8 logits are those of the authors."""
    assert torch.equal(given.mask[0].bool(), visible(name))
    found = model.backbone.text_model(**given.arguments).last_hidden_state
    close(model.backbone.lm_head(found[:, -8:]), f"{name}.logits_tail")


@pytest.fixture(autouse=True)
def _no_gradients():
    with torch.no_grad():
        yield


UPSTREAM = (
    ("model.cap_light_llm.", "compressor.captioner.language_model."),
    ("model.cap_image_mm_projector.", "compressor.projectors.image."),
    ("model.cap_mm_projector.", "compressor.projectors.video."),
    ("model.llm_projector.", "compressor.post_projector."),
    ("model.image_mm_projector.", "backbone.projectors.image."),
    ("model.mm_projector.", "backbone.projectors.video."),
    ("model.vision_tower.vision_encoder.", "backbone.encoders.video.model."),
    ("model.image_vision_tower.vision_tower.vision_model.", "backbone.encoders.image.model."),
    ("", "backbone.language_model."),
)


def test_the_converted_weights_are_those_of_the_authors_loader_to_the_last_bit() -> None:
    found = {n.replace("vision_model.", ""): t for n, t in build("dual", 0).named_parameters(remove_duplicate=False)}
    stored = {name.removeprefix("weights."): t for name, t in golden().items() if name.startswith("weights.")}
    assert len(stored) > 150
    for name, tensor in stored.items():
        new = next(new + name.removeprefix(old) for old, new in UPSTREAM if name.startswith(old))
        assert torch.equal(found[new], tensor.float()), name


def test_the_form_and_the_layer_are_the_released_ones_unless_told_otherwise(tmp_path: Path) -> None:
    convert("langdc", RELEASE, tmp_path / "out", Options(heads=HEADS))
    settings = checkpoint.load(tmp_path / "out").config.compressor.settings
    assert (settings["base"], settings["layer"], settings["soft_token"]) == (None, -1, "released")
    assert settings["max_soft_tokens"] == 128
    dual = checkpoint.load(converted("dual")).config.compressor.settings
    assert (dual["base"], dual["layer"], dual["max_soft_tokens"]) == ({"name": "pool", "sides": [6, 4]}, 0, 256)


def test_internvideo2() -> None:
    encoders: Any = build("pool").backbone.encoders
    encoder = encoders["video"].model
    clips = golden()["in.images"].float().unflatten(0, (4, 4))
    whole = encoder.with_class_token(clips)
    close(whole[:2, 1:], "enc.video", every=8)
    close(whole[:, :1], "enc.video_cls")
    assert torch.equal(encoder(clips).flatten(1, 3), whole[:, 1:])
    close(encoder.with_class_token(clips[:1, :1]), "enc.video_single_frame", every=2)


def test_clip_hidden_state_before_the_last_block() -> None:
    close(encoded()["image"].values[:4].flatten(1, 2), "enc.context", every=8)


def test_visual_tokens_of_the_captioner() -> None:
    model = build("cap")
    compressor: Any = model.compressor
    close(torch.stack(compressor.visual([video(model)])), "cap.project", every=8)


def test_pooled_tokens_of_the_backbone() -> None:
    model = build("pool")
    close(compressed(model).tokens[0].values[None], "pool.project", every=8)


@pytest.mark.parametrize("layer", LAYERS)
def test_soft_tokens_of_given_captions_are_read_at_their_positions(layer: int) -> None:
    found = compressed(build("cap", layer), captions=captions())
    reference = golden()[f"tf.cap.L{layer}.soft_tokens"][0].view(4, 8, -1)
    projected = golden()[f"tf.cap.L{layer}.soft_projected"][0].view(4, 8, -1)
    lengths = [len(caption) for caption in captions()]
    assert found.states is not None
    assert [len(states) for states in found.states[0]] == lengths == [5, 8, 3, 6]
    for states, expected, n in zip(found.states[0], reference, lengths, strict=True):
        torch.testing.assert_close(states, expected[:n], **TOLERANCE)
    tokens = found.tokens[0]
    for number, n in enumerate(lengths):
        torch.testing.assert_close(tokens.values[tokens.segment == number], projected[number, :n], **TOLERANCE)


@pytest.mark.parametrize("layer", LAYERS)
def test_written_captions_and_the_states_that_predict_them(layer: int) -> None:
    found = compressed(build("cap", layer, "predicting"))
    expected_ids = written("gen.caption_ids_cap")
    assert found.ids is not None and found.states is not None
    assert [ids.tolist() for ids in found.ids[0]] == [ids.tolist() for ids in expected_ids]
    assert [len(ids) for ids in expected_ids] == [2, 12, 12, 5]
    reference = golden()[f"gen.cap.L{layer}.soft_tokens"][0].view(4, 12, -1)
    for states, expected in zip(found.states[0], reference, strict=True):
        torch.testing.assert_close(states, expected[: len(states)], **TOLERANCE)


@pytest.mark.parametrize("layer", LAYERS)
def test_released_written_captions_are_the_authors_padding_included(layer: int) -> None:
    model, name = build("cap", layer, "released"), f"gen.cap.L{layer}"
    found = compressed(model)
    assert found.states is not None
    states = [torch.cat(pair) for pair in zip(found.states[0][:4], found.states[0][4:], strict=True)]
    torch.testing.assert_close(torch.cat(states)[None], golden()[f"{name}.soft_tokens"], **TOLERANCE)
    assert [len(part) for part in found.states[0]] == [3, 12, 12, 6, 9, 0, 0, 6]  # two end with a token that is no pad
    assert found.tokens[0].per_segment(4) == [12] * 4
    given = model.inputs(batch(), found.tokens)
    if f"{name}.inputs_embeds" in golden():
        close(given.embeds, f"{name}.inputs_embeds")
    check(model, given, name)


@pytest.mark.parametrize("layer", LAYERS)
def test_released_given_captions_are_the_authors_but_for_states_of_padding(layer: int) -> None:
    model, name = build("cap", layer, "released"), f"tf.cap.L{layer}"
    given = inputs(model, captions=captions())
    if f"{name}.inputs_embeds" in golden():
        seen = visible(name)
        torch.testing.assert_close(given.embeds[0, seen], golden()[f"{name}.inputs_embeds"][0, seen], **TOLERANCE)
    check(model, given, name)


def test_stored_states_of_the_released_way_give_the_same_tokens() -> None:
    model = build("cap", -3, "released")
    for targets in ({}, {"captions": captions()}):
        found = compressed(model, **targets)
        assert found.states is not None
        again = compressed(model, states=found.states[0]).tokens[0]
        assert torch.equal(again.values, found.tokens[0].values)
        assert again.padding is not None and found.tokens[0].padding is not None
        assert torch.equal(again.padding, found.tokens[0].padding)
        assert torch.equal(again.segment, found.tokens[0].segment)


def test_the_dual_form_of_given_captions_is_the_authors() -> None:
    model, name = build("dual", 0, "released"), "tf.dual.L-1"
    given, seen = inputs(model, captions=captions()), visible(name)
    every8 = torch.arange(len(seen))[::8][seen[::8]]
    torch.testing.assert_close(given.embeds[0, every8], golden()[f"{name}.inputs_embeds"][0, every8 // 8], **TOLERANCE)
    check(model, given, name)


def test_the_dual_form_of_written_captions_is_the_authors() -> None:
    model, name = build("dual", 0, "released", most=10), "gen.dual.L-1"
    found = compressed(model)
    assert found.ids is not None and found.states is not None
    assert [ids.tolist() for ids in found.ids[0]] == [ids.tolist() for ids in written("gen.caption_ids_dual")]
    assert [len(states) for states in found.states[0]] == [3, 9, 9, 6, 0, 0, 0, 0]
    torch.testing.assert_close(torch.cat(found.states[0])[None], golden()[f"{name}.soft_tokens"], **TOLERANCE)
    given = model.inputs(batch(), found.tokens)
    close(given.embeds, f"{name}.inputs_embeds", every=8)
    check(model, given, name)


def test_pool_from_pixels_to_logits_and_loss() -> None:
    model, name = build("pool"), "tf.pool"
    given = inputs(model)
    close(given.embeds, f"{name}.inputs_embeds", every=8)
    assert given.mask.all()
    found = model.backbone.text_model(**given.arguments).last_hidden_state
    close(model.backbone.lm_head(found[:, -8:]), f"{name}.logits_tail")
    output = model(batch())
    loss = torch.nn.functional.cross_entropy(output.logits, output.labels)
    torch.testing.assert_close(loss, golden()[f"{name}.loss"], **TOLERANCE)


@pytest.mark.parametrize("kind", ["pool", "cap", "dual"])
def test_the_backbone_writes_the_authors_reply(kind: Branch) -> None:
    """The padding of captions is attended to from the second new token on, as in the released code."""
    settings = {"pool": {}, "cap": {"layer": -1}, "dual": {"layer": 0, "most": 10}}[kind]
    model = build(kind, **({"soft_token": "released", **settings} if settings else {}))
    asked = Prompt(prompt().ids, slots=prompt().slots)
    reading = read_prompt(model.backbone, asked, compressed(model).tokens, None, [16])
    expected = golden()[f"generate.{kind}.ids"][0, -6:].tolist()
    assert Continuation(reading).generate(max_new_tokens=6, eos_token_id=[], pad_token_id=0)[0].tolist() == expected
