"""Agreement with the LangDC authors' code, from the checkpoint that the converter makes of a release with tiny random
weights (`langdc_ckpt/`); what the numbers are, README.md here says.

On purpose the project differs from the released code in two ways, and compares around them: segments follow each other
without padding (upstream masks padding inside the model's input and lets it use up positions), and the dual form reads
the layer it is told to (upstream always the embeddings, layer 0, and drops the last token of captions that reach the
limit). That an end token has no soft token is so too, but for "released", the way of converted checkpoints.
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
from langdc.captioner import SoftToken
from langdc.conversion.videogpt import Branch, Options, convert
from langdc.generate import greedy
from langdc.model import VideoModel
from langdc.types import Compressed, Context, FeatureGrid, Prompt, Slot, Spliced, VideoBatch, VideoFeatures

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


def splice(model: VideoModel, states: list[Tensor] | None = None) -> Spliced:
    context = Context() if states is None else Context(targets={"states": [states]})
    return model.backbone.splice([prompt()], [model.compress([video(model)], context).tokens])[0]


def given(model: VideoModel) -> Compressed:
    """The tokens and states of the recorded captions."""
    return model.compressor([video(model)], Context(targets={"captions": [captions()]}))


def states_of(result: Compressed) -> list[Tensor]:
    assert result.states is not None
    return result.states[0]


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


def logits(model: VideoModel, spliced: Spliced, mask: Tensor | None = None) -> Tensor:
    """Of the last 8 positions [1,8,vocabulary]; `mask` [1,M] hides positions, which still count."""
    length = len(spliced.embeds)
    found = model.backbone.text_model(
        inputs_embeds=spliced.embeds[None],
        attention_mask=torch.ones(1, length).long() if mask is None else mask.long(),
        position_ids=torch.arange(length)[None],
    )
    return model.backbone.lm_head(found.last_hidden_state[:, -8:])


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
    close(model.compressor([video(model)]).tokens[0].values[None], "pool.project", every=8)


@pytest.mark.parametrize("layer", LAYERS)
def test_soft_tokens_of_given_captions_are_read_at_their_positions(layer: int) -> None:
    model = build("cap", layer)
    found = given(model)
    reference = golden()[f"tf.cap.L{layer}.soft_tokens"][0].view(4, 8, -1)
    projected = golden()[f"tf.cap.L{layer}.soft_projected"][0].view(4, 8, -1)
    lengths = [len(caption) for caption in captions()]
    assert [len(states) for states in states_of(found)] == lengths == [5, 8, 3, 6]
    for states, expected, n in zip(states_of(found), reference, lengths, strict=True):
        torch.testing.assert_close(states, expected[:n], **TOLERANCE)
    tokens = found.tokens[0]
    for number, n in enumerate(lengths):
        torch.testing.assert_close(tokens.values[tokens.segment == number], projected[number, :n], **TOLERANCE)


@pytest.mark.parametrize("layer", LAYERS)
def test_written_captions_and_the_states_that_predict_them(layer: int) -> None:
    """A row's end token has no state here; upstream keeps that one and those of the padding after it."""
    model = build("cap", layer, "predicting")
    found = model.compressor([video(model)])
    expected_ids = written("gen.caption_ids_cap")
    assert [ids.tolist() for ids in (found.ids or [])[0]] == [ids.tolist() for ids in expected_ids]
    assert [len(ids) for ids in expected_ids] == [2, 12, 12, 5]
    reference = golden()[f"gen.cap.L{layer}.soft_tokens"][0].view(4, 12, -1)
    for states, expected in zip(states_of(found), reference, strict=True):
        torch.testing.assert_close(states, expected[: len(states)], **TOLERANCE)


def test_the_released_mode_is_at_for_given_and_predicting_for_written_captions() -> None:
    model = build("cap", -3, "released")
    read, chosen = states_of(given(model)), states_of(model.compressor([video(model)]))
    for number, (states, n) in enumerate(zip(read, (5, 8, 3, 6), strict=True)):
        expected = golden()["tf.cap.L-3.soft_tokens"][0].view(4, 8, -1)[number, :n]
        torch.testing.assert_close(states, expected, **TOLERANCE)
    reference = golden()["gen.cap.L-3.soft_tokens"][0].view(4, 12, -1)
    for states, expected, seen in zip(chosen, reference, visible("gen.cap.L-3"), strict=True):
        torch.testing.assert_close(states, expected[seen], **TOLERANCE)
    assert [len(states) for states in chosen] == [
        3,
        12,
        12,
        6,
    ]  # two captions end, both with a token that is no padding


def visible(case: str) -> Tensor:
    """Which of the 12 states of each caption upstream lets the backbone see [4,12]."""
    mask = golden()[f"{case}.attention_mask"][0]
    before = prompt().slots[0].position
    return mask[before : before + 48].view(4, 12)


def test_backbone_input_of_written_captions_is_what_upstream_lets_the_backbone_see() -> None:
    spliced = splice(build("cap", -1, "released"))
    mask = golden()["gen.cap.L-1.attention_mask"][0]
    assert spliced.video.sum() == visible("gen.cap.L-1").sum() == 33
    torch.testing.assert_close(spliced.embeds, golden()["gen.cap.L-1.inputs_embeds"][0, mask], **TOLERANCE)


def test_dual_form_of_given_captions_holds_embeddings() -> None:
    model = build("dual", layer=0)
    found = given(model)
    for states, expected in zip(states_of(found), golden()["tf.dual.L-1.soft_tokens"][0].view(4, 8, -1), strict=True):
        torch.testing.assert_close(states, expected[: len(states)], **TOLERANCE)
    mask = golden()["tf.dual.L-1.attention_mask"][0]
    kept = torch.arange(len(mask))[mask]
    every8 = kept % 8 == 0
    spliced = splice(model, states_of(found))
    assert len(spliced.embeds) == len(kept)
    torch.testing.assert_close(
        spliced.embeds[every8], golden()["tf.dual.L-1.inputs_embeds"][0, kept[every8] // 8], **TOLERANCE
    )


def test_dual_form_of_written_captions() -> None:
    """Upstream's segments hold 3, 9, 9, 6 states: with the end token's, without the last of a caption at the limit."""
    model = build("dual", 0, "released", most=10)
    found = model.compressor([video(model)])
    assert [i.tolist() for i in (found.ids or [])[0]] == [i.tolist() for i in written("gen.caption_ids_dual")]
    reference = golden()["gen.dual.L-1.soft_tokens"][0].split([3, 9, 9, 6])
    assert [len(states) for states in states_of(found)] == [3, 10, 10, 6]
    for states, expected, same in zip(states_of(found), reference, (3, 9, 9, 6), strict=True):
        torch.testing.assert_close(states[:same], expected[:same], **TOLERANCE)


def test_backbone_input_of_given_captions() -> None:
    """Equal at every position that upstream does not mask."""
    model = build("cap")
    spliced = splice(model, states_of(given(model)))
    mask = golden()["tf.cap.L-1.attention_mask"][0]
    torch.testing.assert_close(spliced.embeds, golden()["tf.cap.L-1.inputs_embeds"][0, mask], **TOLERANCE)
    assert spliced.video.sum() == 22


@pytest.mark.parametrize("case", ["tf.cap.L-1", "tf.cap.L-3", "gen.cap.L-1", "gen.cap.L-3"])
def test_caption_logits_from_the_reference_states(case: str) -> None:
    """Masked padding uses up positions upstream, so its logits are compared on its own padded states and mask."""
    model = build("cap")
    spliced = splice(model, list(golden()[f"{case}.soft_tokens"][0].chunk(4)))
    if f"{case}.inputs_embeds" in golden():
        close(spliced.embeds[None], f"{case}.inputs_embeds")
    close(logits(model, spliced, golden()[f"{case}.attention_mask"]), f"{case}.logits_tail")


@pytest.mark.parametrize(("case", "parts"), [("tf.dual.L-1", [8] * 4), ("gen.dual.L-1", [3, 9, 9, 6])])
def test_dual_logits_from_the_reference_states(case: str, parts: list[int]) -> None:
    model = build("dual", layer=0)
    spliced = splice(model, list(golden()[f"{case}.soft_tokens"][0].split(parts)))
    close(spliced.embeds[None], f"{case}.inputs_embeds", every=8)
    close(logits(model, spliced, golden()[f"{case}.attention_mask"]), f"{case}.logits_tail")


def test_pool_from_pixels_to_logits_and_loss() -> None:
    model = build("pool")
    spliced = splice(model)
    close(spliced.embeds[None], "tf.pool.inputs_embeds", every=8)
    close(logits(model, spliced), "tf.pool.logits_tail")
    found = model(VideoBatch([encoded()], [torch.arange(16)], [prompt()], [(0,)]))
    assert found.logits is not None and found.labels is not None
    loss = torch.nn.functional.cross_entropy(found.logits, found.labels)
    torch.testing.assert_close(loss, golden()["tf.pool.loss"], **TOLERANCE)


@pytest.mark.parametrize(("kind", "parts"), [("pool", None), ("dual", [3, 9, 9, 6])])
def test_the_backbone_writes_the_same_answer(kind: str, parts: list[int] | None) -> None:
    model = build(kind, *([0] if kind == "dual" else []))
    states = None if parts is None else list(golden()["gen.dual.L-1.soft_tokens"][0].split(parts))
    embeds = splice(model, states).embeds[None]
    mask = torch.ones(embeds.shape[:2]).long()
    found = greedy(model.backbone.language_model, embeds, mask, end=[-1], max_tokens=6, layer=-1)
    assert found.ids[0].tolist() == golden()[f"generate.{kind}.ids"][0, -6:].tolist()
