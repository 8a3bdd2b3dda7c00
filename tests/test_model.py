"""A model is put together from settings, at a tiny size and at the full one."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

from langdc.adapters import adapt
from langdc.backbones.chat import conversation, share_video
from langdc.config import LoraConfig, MemberConfig, ModelConfig, check
from langdc.encoders.image import ImageEncoder
from langdc.encoders.video import VideoEncoder
from langdc.model import VideoModel, build_compressor
from langdc.train.objectives import objectives
from langdc.train.trainable import unfreeze
from langdc.types import Context, Prompt, VideoBatch
from tests import tiny
from tests.reference.answers import slow_losses
from tests.reference.captions import SlowCaptioner

FULL_SIZE = Path(__file__).parents[1] / "configs" / "langdc_3b" / "model.yaml"
STATES = [[torch.randn(2, tiny.CAPTIONER_WIDTH)] * 4]
ASKED = [("what shape is the red object ?", "square"), ("how does it move ?", "left")]


def full_size() -> dict:
    """The full-size settings, with the sample tokenizer in place of Qwen2.5's."""
    tree = yaml.safe_load(FULL_SIZE.read_text())["model"]
    tree["backbone"]["tokenizer"] = tree["compressor"]["captioner_tokenizer"] = tiny.tokenizer_folder()
    return tree


def parameters(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def batch_of(model: VideoModel, prompts: Sequence[Prompt], count: int = 1, **more: Any) -> VideoBatch:
    """Noise videos, each shown by one prompt; a prompt without a slot shows none."""
    videos = [tiny.frames(number) for number in range(count)] or [model.backbone.blank()]
    numbers = iter(range(count))
    shows = [(next(numbers),) if prompt.slots else () for prompt in prompts]
    raw, seconds = model.backbone.encode(videos), [video.seconds for video in videos]
    return VideoBatch(raw, seconds, prompts, shows, blank=not count, **more)


def answer_loss(model: VideoModel, batch: VideoBatch) -> tuple[Tensor, int]:
    return objectives.build("answer").losses(model, batch, Context(training=True))["answer"]


def caption_loss(model: VideoModel, captions: list[list[Tensor]]) -> tuple[Tensor, int]:
    batch = batch_of(model, [])
    context = Context(training=True, targets={"captions": captions}, wanted=frozenset({"caption"}))
    return objectives.build("compress").losses(model, batch, context)["caption"]


def shared(model: VideoModel) -> Prompt:
    return share_video([model.backbone.prompt(conversation(q, a), learn=True) for q, a in ASKED])


def test_the_backbone_fills_in_what_only_it_knows_and_settings_win() -> None:
    backbone = tiny.model("pool", backbone=tiny.backbone_settings(frames_per_segment=8)).backbone
    filled = build_compressor(MemberConfig(name="pool", sides=[3, 2]), backbone)
    given = build_compressor(MemberConfig(name="pool", sides=[3, 2], frames_per_segment=2), backbone)
    assert (filled.frames_per_segment, given.frames_per_segment) == (8, 2)
    with pytest.raises(ValueError, match="needs the setting sides"):
        build_compressor(MemberConfig(name="pool"), backbone)


def test_compressors_within_compressors_are_filled_in_too() -> None:
    backbone = tiny.model("pool").backbone
    members = [{"name": "pool", "sides": [2, 2]}, {"name": "selector", "tokens": 4}]
    chain = build_compressor(MemberConfig(name="chain", members=members), backbone)
    assert chain.members[1].level.in_features == backbone.width


def test_unknown_names_are_named() -> None:
    with pytest.raises(ValueError, match=r"Unknown backbone 'videogpt'.*Did you mean 'videogpt_plus'"):
        VideoModel(ModelConfig(backbone=MemberConfig(name="videogpt"), compressor=MemberConfig(name="pool")))
    with pytest.raises(ValueError, match=r"no setting 'projectors'.*Did you mean 'projector'"):
        tiny.model("pool", backbone=tiny.backbone_settings(projectors="linear"))


@pytest.mark.parametrize("compressor", tiny.COMPRESSORS)
def test_the_answer_loss_is_the_mean_over_all_replies(compressor: str) -> None:
    model = tiny.model(compressor)
    text = model.backbone.prompt(conversation("what is red ?", "red", videos=0), learn=True)
    total, count = answer_loss(model, batch_of(model, [shared(model), text, shared(model)], 2))
    videos = model.backbone.features_of([tiny.frames(0), tiny.frames(1)], model.compressor.needs)
    singles = [model.backbone.prompt(conversation(q, a), learn=True) for q, a in ASKED]
    expected = slow_losses(model.backbone, text, [])
    for tokens in model.compressor(videos).tokens:
        expected += [value for one in singles for value in slow_losses(model.backbone, one, [tokens.values.detach()])]
    assert count == len(expected)
    assert total.item() == pytest.approx(sum(expected), rel=1e-5)


def test_a_batch_of_text_alone_is_learned() -> None:
    model = tiny.model("langdc")
    prompt = model.backbone.prompt(conversation("what is red ?", "red", videos=0), learn=True)
    total, count = answer_loss(model, batch_of(model, [prompt], 0))
    expected = slow_losses(model.backbone, prompt, [])
    assert count == len(expected) and total.item() == pytest.approx(sum(expected), rel=1e-5)


def calls(model: VideoModel, batch: VideoBatch) -> tuple[list[str], list[str], list[str]]:
    """The innermost parts that a training step calls forward and backward, and what gets gradients, each in order."""
    forward, backward, learned = [], [], []
    handles = []
    for name, part in model.named_modules():
        if next(part.children(), None) is not None or next(part.parameters(), None) is None:
            continue
        handles.append(part.register_forward_pre_hook(lambda *_, name=name: forward.append(name)))
        handles.append(part.register_full_backward_pre_hook(lambda *_, name=name: backward.append(name)))
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            hook = parameter.register_post_accumulate_grad_hook(lambda _, name=name: learned.append(name))
            handles.append(hook)
    answer_loss(model, batch)[0].backward()
    for handle in handles:
        handle.remove()
    return forward, backward, learned


@pytest.mark.parametrize("form", ["caption only", "dual", "pool"])
def test_text_alone_makes_the_calls_that_a_video_makes(form: str) -> None:
    """Ranks that share gradients (ZeRO-2) or weights (ZeRO-3) wait for each other's calls, whatever they show."""
    dual = {"base": {"name": "pool", "sides": [3, 2]}} if form == "dual" else {}
    model = tiny.model("pool") if form == "pool" else tiny.model(segment_marker=True, **dual)
    adapt(model.backbone.text_model, LoraConfig(rank=2, alpha=4, dropout=0.0))
    read = ["backbone.projectors.*"] if form != "caption only" else []
    written = ["compressor.post_projector.*", "compressor.segment_marker.*"] if form != "pool" else []
    unfreeze(model, [*read, *written], adapters=True)
    alone = model.backbone.prompt(conversation("what is red ?", "red", videos=0), learn=True)
    known, blank = ({} if form == "pool" else {"states": states} for states in (STATES, [None]))
    expected = calls(model, batch_of(model, [shared(model)], targets=known))
    model.zero_grad()
    assert calls(model, batch_of(model, [alone], 0, targets=blank)) == expected
    assert len(expected[2]) == sum(p.requires_grad for p in model.parameters())
    of_videos = [p for name, p in model.named_parameters() if p.requires_grad and "lora" not in name]
    assert not any(parameter.grad.any() for parameter in of_videos)


def test_the_caption_loss_is_the_mean_over_all_targets() -> None:
    model = tiny.model()
    captioner = model.compressor.captioner
    captions = [[captioner.encode(text) for text in ("red square", "", "blue", "green ring up")]]
    total, count = caption_loss(model, captions)
    visual = model.compressor.visual(model.backbone.features_of([tiny.frames(0)], frozenset({"encoder"})))
    slow, end = SlowCaptioner(captioner), captioner.tokenizer.eos_token_id
    nats = [slow.loss(v.detach(), c.tolist(), end) for v, c in zip(visual, captions[0], strict=True)]
    assert count == sum(map(len, captions[0])) + 4
    assert total.item() == pytest.approx(sum(nats), rel=1e-5)


def test_the_full_size_has_the_published_sizes() -> None:
    config = check(ModelConfig, full_size(), str(FULL_SIZE))
    with torch.device("meta"):
        model = VideoModel(config)
    backbone, captioner = model.backbone, model.compressor.captioner
    assert parameters(backbone.language_model) == 3_085_938_688
    assert parameters(captioner.language_model) == 494_032_768
    image, video = backbone.encoders["image"], backbone.encoders["video"]
    assert isinstance(image, ImageEncoder) and isinstance(video, VideoEncoder)
    assert parameters(image.model) == 303_507_456
    assert (image.side, image.width, video.side, video.width) == (24, 1024, 16, 1408)
    # 40 blocks, patch embedding, class token and both position tables, from the published widths
    width, mlp = 1408, 6144
    block = 4 * width**2 + width + 2 * width * mlp + width + mlp + 6 * width
    tables = width * (1 + (4 * 256 + 1) + (256 + 1))
    assert parameters(video.model) == 40 * block + tables + width * (3 * 14 * 14 + 1) == 1_012_586_496
    assert model.compressor.pool == {"image": 12, "video": 8}
    assert all(parameter.is_meta for parameter in model.parameters())


@pytest.mark.slow
def test_one_training_step_of_each_kind_at_full_width_and_depth_two() -> None:
    """Every width, vocabulary, resolution and token count of the full size; 2 layers in each network. About 12 GB."""
    tree = full_size()
    for source in (
        tree["backbone"]["language_model"],
        tree["compressor"]["captioner"],
        tree["backbone"]["image_encoder"]["source"],
    ):
        source["config"]["num_hidden_layers"] = 2
    tree["backbone"]["video_encoder"]["source"]["config"] = {"depth": 2}
    tree["compressor"].update(layer=1, max_soft_tokens=8)
    torch.manual_seed(0)
    model = VideoModel(check(ModelConfig, tree, str(FULL_SIZE)))
    captioner = model.compressor.captioner
    captions = [[captioner.encode(text) for text in ("red square left", "", "blue ring", "green cross up")]]
    prompt = shared(model)
    steps = {
        "compressor.captioner.": lambda: caption_loss(model, captions),
        "backbone.language_model.": lambda: answer_loss(model, batch_of(model, [prompt])),
    }
    for trained, loss in steps.items():
        model.requires_grad_(False)
        model.get_submodule(trained.rstrip(".")).requires_grad_(True)
        rows = [parameter for parameter in model.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(rows, lr=1e-4, foreach=False)
        before = loss()[0]
        before.backward()
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():
            assert loss()[0] < before.item()
    (visual, *_) = model.compressor.visual(model.backbone.features_of([tiny.frames(0)], frozenset({"encoder"})))
    assert visual.shape == (832, 896)
