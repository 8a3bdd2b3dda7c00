"""FLOPs of closed forms, of shapes and of answers, against torch's counter around the same call and counts by hand."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch.utils._python_dispatch import TorchDispatchMode, _get_current_dispatch_mode
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count
from transformers import DynamicCache, Qwen2Config, Qwen2ForCausalLM

from langdc import flops
from langdc.backbones import backbones
from langdc.compressors import build
from langdc.config import MemberConfig
from langdc.flops import Counted, encoder_flops, language_model_flops, uncounted, work_flops
from langdc.interfaces import Backbone
from langdc.kvcompressors import kvcompressors
from langdc.layercompressors import layercompressors
from langdc.model import VideoModel, build_compressor
from langdc.pipeline import VideoLM
from langdc.train.trainable import unfreeze
from langdc.types import FeatureGrid, Frames, LanguageWork, VideoFeatures
from tests import stock, tiny
from tests.contract.test_kvcompressors import VARIANTS
from tests.contract.test_layercompressors import VARIANTS as LAYER_VARIANTS
from tests.train import small

WITHIN = 0.02  # rotary tables are products of small matrices, which the closed form leaves out
QUESTION = "what is in the video ?"
aten = torch.ops.aten


def _attention(query, key, value, *args, out_shape=None, **kwargs) -> int:
    """Grouped keys are repeated, which the counter of torch 2.11 does not know."""
    return sdpa_flop_count(query, *((*query[:2], *shape[2:]) for shape in (key, value)))


def _refused(*shapes, **kwargs) -> int:
    raise AssertionError(f"A product of {shapes} that nobody counts")


ADDED = {
    aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    aten.mv: lambda matrix, vector, out_shape=None, **kwargs: 2 * math.prod(matrix),
    **dict.fromkeys([aten.dot, aten.vdot, aten.addmv, aten.addbmm, aten._native_multi_head_attention], _refused),
}


@contextmanager
def counting() -> Iterator[Callable[[], int]]:
    """What is done inside, by torch's counter as it is; `uncounted` does not reach it."""
    with FlopCounterMode(display=False, custom_mapping=ADDED) as counter:
        yield counter.get_total_flops


# ---- the counter


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("without_gradients", [torch.no_grad, torch.inference_mode])
def test_attention_with_grouped_keys(device: str, without_gradients: Callable) -> None:
    """2 x 8 heads, 5 queries, 7 keys: 16 numbers a score, 4 a weighted value."""
    with without_gradients(), Counted() as counted:
        query, key, value = (torch.ones(2, *shape, device=device) for shape in [(8, 5, 16), (2, 7, 16), (2, 7, 4)])
        F.scaled_dot_product_attention(query, key, value, enable_gqa=True)
    assert counted.total == 2 * 2 * 8 * 5 * 7 * (16 + 4)


@torch.no_grad()
def test_products_that_torch_does_not_count() -> None:
    one, other = torch.ones(3, 5), torch.ones(4, 5)
    with Counted() as counted:
        torch.cdist(one, other)
        one @ other[0]
        other[0] @ other[1]
        torch.addmv(one[:, 0], one, other[0])
    assert counted.total == 2 * 3 * 4 * 5 + 2 * 3 * 5 + 2 * 5 + 2 * 3 * 5
    attention = torch.nn.MultiheadAttention(8, 2, batch_first=True).eval()
    tokens = torch.ones(2, 6, 8)
    with Counted() as counted:
        attention(tokens, tokens, tokens, need_weights=False)
    assert counted.total == 4 * 2 * (2 * 6) * 8 * 8 + 2 * 2 * (2 * 6 * 6) * 8


class Noting(TorchDispatchMode):
    """Another mode: which operations it saw."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.seen += 1
        return func(*args, **(kwargs or {}))


def test_uncounted_takes_no_part_in_a_call() -> None:
    one = torch.ones(3, 3)
    with Counted() as outer, Counted() as inner:
        one @ one
        with uncounted():
            assert _get_current_dispatch_mode() is None
            one @ one
        with pytest.raises(RuntimeError), uncounted():
            one @ torch.ones(2)
        one @ one
    assert inner.total == outer.total == 2 * 54
    with uncounted():
        assert _get_current_dispatch_mode() is None


def test_uncounted_leaves_other_modes_alone() -> None:
    one = torch.ones(3, 3)
    for order in (0, 1):
        counted, noting = Counted(), Noting()
        first, second = (counted, noting) if order else (noting, counted)
        with counting() as total, first, second:
            with uncounted():
                one @ one
            assert (counted.total, noting.seen, total()) == (0, 1, 54)
            one @ one
            assert (counted.total, noting.seen, total()) == (54, 2, 108)


def test_gradients_flow_through_what_is_counted() -> None:
    compressor, video = learned("resampler", queries=3, heads=2), tiny.features(count=8)
    with Counted() as counted:
        tokens = compressor([video]).tokens[0].values
    tokens.sum().backward()
    assert counted.total == counted_flops(compressor, video)
    assert all(weight.grad is not None for weight in compressor.parameters())


# ---- language models

QWEN2 = {
    "hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 6, "num_key_value_heads": 2,
    "intermediate_size": 112, "vocab_size": 200,
}  # fmt: skip


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize(("cached", "read"), [(0, 37), (37, 1), (20, 9)])
@torch.no_grad()
def test_a_language_model(cached: int, read: int, attention: str) -> None:
    model = Qwen2ForCausalLM(Qwen2Config(**QWEN2, attn_implementation=attention)).eval()
    cache = DynamicCache(config=model.config)
    if cached:
        model.model(torch.arange(cached)[None], past_key_values=cache)
    with counting() as blocks:
        states = model.model(torch.arange(read)[None], past_key_values=cache).last_hidden_state
    assert language_model_flops(model.config, read, cached, predictions=0) == pytest.approx(blocks(), rel=WITHIN)
    with counting() as head:
        model.lm_head(states)
    assert language_model_flops(model.config, 0, predictions=read) == head()


def test_uses_of_a_language_model() -> None:
    """Written: the first prediction comes with what is read, every further one with the token before it."""
    config = Qwen2Config(**QWEN2)
    steps = [language_model_flops(config, 10), *(language_model_flops(config, 1, 10 + done) for done in range(3))]
    assert work_flops([LanguageWork(config, 10, written=4)]) == pytest.approx(sum(steps), rel=1e-12)
    scored = language_model_flops(config, 13, predictions=4)
    assert work_flops([LanguageWork(config, 13, scored=4)]) == scored
    assert work_flops([LanguageWork(config, 13, scored=4)] * 3) == 3 * scored
    assert work_flops([]) == 0


# ---- encoders


@cache
def folder() -> Path:
    return Path(mkdtemp(prefix="flops"))


@cache
def clip() -> Path:
    return stock.mp4(folder(), count=24, fps=12)


@cache
def model(backbone: str) -> VideoModel:
    if backbone == "videogpt_plus":
        return tiny.model("pool")
    return VideoLM.from_pretrained(stock.folder(backbone), backbone={"name": backbone, "frames": 8}).model


def thin() -> Frames:
    """A picture of 20 x 90, which LLaVA cuts into more crops than a square one."""
    return Frames(torch.zeros(1, 3, 20, 90, dtype=torch.uint8), torch.zeros(1))


@pytest.mark.parametrize("name", backbones.names())
@torch.no_grad()
def test_encoders_are_counted_from_shapes(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    backbone: Backbone = model(name).backbone
    needs = [frozenset(), frozenset({"saliency"})] if backbone.has_saliency else [frozenset()]
    for video in (stock.clip(1, count=8), stock.clip(1, count=4), stock.clip(2, count=1), thin()):
        for need in needs:
            with counting() as counted:
                encoded = backbone.encode([video], need)[0]
            assert encoder_flops(backbone, encoded) == counted() > 0
    weights = dict(backbone.encoders.named_parameters())
    assert not any(weight.is_meta for weight in weights.values())
    monkeypatch.setattr(flops, "_without_weights", None)  # known shapes are not counted again
    assert encoder_flops(backbone, encoded) == counted()


def test_a_backbone_without_weights_shares_nothing_large() -> None:
    backbone = model("llava_onevision").backbone
    tokenizer, copied = backbone.tokenizer, flops._without_weights(backbone)
    assert all(tensor.is_meta for tensor in (*copied.parameters(), *copied.buffers()))
    assert isinstance(copied.text_model, torch.nn.Identity) and copied.tokenizer is tokenizer


# ---- compressors, in the pass that is timed


def counted_flops(compressor: torch.nn.Module, video: VideoFeatures) -> float:
    with torch.no_grad(), Counted() as counted:
        compressor([video])
    return counted.total


def learned(name: str, **settings) -> torch.nn.Module:
    torch.manual_seed(0)
    return build_compressor(MemberConfig(name=name, **settings), model("videogpt_plus").backbone).eval()


def test_ldpv2_by_hand() -> None:
    """Two linear layers for each patch, nine products for each channel of each token."""
    wide = tiny.BACKBONE_WIDTH
    image = 2 * 5 * 36 * (24 * wide + wide * wide) + 2 * 9 * 5 * 3 * 3 * wide
    video = 2 * 5 * 16 * (32 * wide + wide * wide) + 2 * 9 * 5 * 2 * 2 * wide
    assert counted_flops(learned("ldpv2", sides=[3, 2]), tiny.features(count=5)) == image + video


def test_resampler_by_hand() -> None:
    """One linear layer for each patch; per segment 3 queries attend to its patches and themselves, in two blocks."""
    wide, segments, patches = tiny.BACKBONE_WIDTH, 2, 4 * (36 + 16)
    project = 2 * 8 * (36 * 24 + 16 * 32) * wide
    attention = 2 * (2 * 3 + 2 * (patches + 3)) * wide * wide + 4 * 3 * (patches + 3) * wide
    mlp = 2 * 2 * 3 * wide * 4 * wide
    expected = project + segments * (2 * (attention + mlp) + 2 * 3 * wide * wide)
    assert counted_flops(learned("resampler", queries=3, heads=2), tiny.features(count=8)) == expected


def noise(count: int, places: tuple[int, int], width: int) -> VideoFeatures:
    grid = FeatureGrid(torch.randn(count, *places, width, generator=torch.Generator().manual_seed(0)))
    return VideoFeatures((grid,), {"video": grid}, torch.arange(count) / 2)


def test_training_free_methods_by_hand() -> None:
    """VidCom2: each token with the means of the video and its frame, and those means; VisionZip: a frame's tokens with
    each other, and of the others the sums over what is merged into each; pooling and thinning out multiply nothing."""
    frames, places, width = 6, 5 * 4, 24
    video = noise(frames, (5, 4), width)
    assert counted_flops(build("vidcom2", keep=0.25), video) == 3 * 2 * frames * places * width
    zipped = build("visionzip", keep=0.25)
    _, others = zipped._counts(zipped.allowed, frames, places, torch.device("cpu"))
    merging = 2 * frames * places * width * (places + others)
    assert others > 0 and counted_flops(zipped, video) == merging
    tokens = frames * places
    assert counted_flops(build("divprune", keep=0.25), video) == 2 * tokens * tokens * width
    apart = build("divprune", keep=0.25, per="frame")
    assert counted_flops(apart, video) == 2 * tokens * places * width
    for name in ("random", "uniform", "dpselect", "ma_lmm", "dycoke", "evs"):
        assert counted_flops(build(name, keep=0.25), video) == 0
    assert counted_flops(learned("pool", sides=[3, 2]), tiny.features(count=4)) == 0


# ---- answers


def check_stages(lm: VideoLM) -> None:
    """Ask for real, and compare every stage."""
    with counting() as encoding:
        video = lm.open(clip())
    with counting() as before:
        lm.compress([(video, QUESTION)])
    with counting() as reading:
        video.ask(QUESTION, max_new_tokens=1)
    with counting() as both:
        answer = video.ask(QUESTION, max_new_tokens=4)
    counts = {"encode": encoding(), "compress": before(), "prefill": reading(), "generate": both() - reading()}
    assert answer.flops == pytest.approx(counts, rel=WITHIN)


# Qwen3.5's reference kernels compute in blocks of 64 tokens what is charged token by token; see its own test
@pytest.mark.parametrize("backbone", [name for name in backbones.names() if name not in stock.RECURRENT])
def test_every_stage_of_an_answer(backbone: str) -> None:
    torch.manual_seed(0)
    chosen = MemberConfig(name="resampler", queries=3, heads=2)
    check_stages(VideoLM(model(backbone), build_compressor(chosen, model(backbone).backbone).eval()))


def test_a_compressor_with_a_language_model() -> None:
    """Captions that never end are written to the last step, so all segments make as many."""
    compressor = learned("langdc", **tiny.langdc_settings(base={"name": "pool", "sides": [3, 2]}))
    compressor.captioner.end = [-1]
    check_stages(VideoLM(model("videogpt_plus"), compressor))


@pytest.mark.parametrize("variant", [*VARIANTS, "pivotkv, relevant"])
def test_a_kv_compressor_reading_in_chunks(variant: str) -> None:
    settings = {**VARIANTS, "pivotkv, relevant": {"scorer": {"name": "question", "relevant": True}}}[variant]
    kv = kvcompressors.build(variant.split(",")[0], **{"keep": 0.5, "chunk_frames": 4, **settings})
    lm = VideoLM(model("qwen2_5_vl"), build("identity"), kv)
    check_stages(lm)
    # a prompt without a video costs nothing but its reading, whatever was asked before
    with counting() as counted:
        answer = lm.ask(None, "how many ?", max_new_tokens=1)
    assert answer.flops["prefill"] == pytest.approx(counted(), rel=WITHIN)


@pytest.mark.parametrize("settings", [{"keep": 0.75}, {"keep": 0.2, "variant": "released"}])
def test_keys_that_a_reply_does_not_read(settings: dict) -> None:
    """The whole of DyCoke; the tokens of a reply cost less than with all keys."""
    whole, kv = build("dycoke", keep=0.5), kvcompressors.build("dycoke_decoding", **settings)
    lm = VideoLM(model("qwen2_5_vl"), whole, kv)
    check_stages(lm)
    cost, plain = (
        each.open(clip()).ask(QUESTION, max_new_tokens=4) for each in (lm, VideoLM(model("qwen2_5_vl"), whole))
    )
    assert cost.flops["prefill"] == plain.flops["prefill"] and cost.kv_bytes == plain.kv_bytes
    assert cost.flops["generate"] != plain.flops["generate"]


@pytest.mark.parametrize("variant", LAYER_VARIANTS)
def test_a_layer_compressor(variant: str) -> None:
    settings = {"keep": 0.75, **LAYER_VARIANTS[variant]}
    layers = layercompressors.build(variant.split(",")[0], **settings)
    check_stages(VideoLM(model("qwen2_5_vl"), build("identity"), layers=layers))
    kv = kvcompressors.build("snapkv", keep=0.5, chunk_frames=4)
    check_stages(VideoLM(model("qwen3_vl"), build("identity"), kv, layers))


def test_a_picture(tmp_path: Path) -> None:
    Image.fromarray(stock.clip(2, count=1).pixels[0].permute(1, 2, 0).numpy()).save(tmp_path / "picture.png")
    lm = VideoLM(model("llava_onevision"), build("identity"))
    with counting() as counted:
        image = lm.open(tmp_path / "picture.png")
    assert image.ask(QUESTION, max_new_tokens=1).flops["encode"] == counted()


def test_a_compressor_that_reads_the_question() -> None:
    """The projector counts for every question about a video, together or one after the other."""
    lm = VideoLM(model("llava_onevision"), build("cdpruner", keep=0.25))
    check_stages(lm)
    alone = lm.open(clip()).ask(QUESTION, max_new_tokens=1).flops["compress"]
    again = lm.open(clip())
    together = lm.answer([(again, QUESTION), (again, "how many ?")], max_new_tokens=1)
    later = again.ask("what is it ?", max_new_tokens=1)
    assert [answer.flops["compress"] for answer in (*together, later)] == [alone] * 3


def test_a_question_costs_the_same_alone_and_in_a_batch() -> None:
    lm = VideoLM(model("videogpt_plus"))
    alone = lm.open(clip()).ask(QUESTION, max_new_tokens=4).flops
    again = lm.open(clip())
    together = lm.answer([(again, QUESTION), (again, "how many ?")], max_new_tokens=4)
    assert together[0].flops == alone and together[1].flops["prefill"] < alone["prefill"]


# ---- training


@pytest.mark.parametrize("trained", [False, True])
def test_a_training_step(trained: bool) -> None:
    """Stored features: the language model, three times where it learns and twice else; from frames: encoders, too."""
    lm = tiny.model("pool")
    unfreeze(lm, ["backbone.projectors.*"] if trained else ["backbone.language_model.*"])
    data = small.data_of(lm, small.run_config(lm))
    learner, batch = small.learner_of(data), small.batch_of(data, 0, 1)["batch"]
    learner(batch)
    stored, config = learner.flops, lm.backbone.language_model.config
    tokens = [len(raw["image"].values) * (3 * 3 + 2 * 2) for raw in batch.raw]
    lengths = [len(p.ids) + sum(tokens[n] for n in shown) for p, shown in zip(batch.prompts, batch.shows, strict=True)]
    learned = sum(int((prompt.labels[1:] != -100).sum()) for prompt in batch.prompts)
    reading = sum(language_model_flops(config, length, predictions=0) for length in lengths)
    reading += language_model_flops(config, 0, predictions=learned)
    assert stored == pytest.approx((2 if trained else 3) * reading, rel=1e-9)
    frames = [tiny.frames(number, count=len(raw["image"].values)) for number, raw in enumerate(batch.raw)]
    learner(replace(batch, raw=(), frames=frames))
    encoding = sum(encoder_flops(lm.backbone, raw) for raw in batch.raw)
    assert encoding > 0 and learner.flops == pytest.approx(stored + encoding, rel=1e-9)
