"""With nothing compressed, a backbone is the stock model: the same prompt, logits and reply, for any mix of media."""

import math

import pytest
import torch
from transformers import AutoConfig, AutoModelForImageTextToText
from transformers.generation.streamers import BaseStreamer

from langdc import compressors
from langdc.backbones import backbones
from langdc.backbones.inputs import read_prompt
from langdc.backbones.stock import StockBackbone
from langdc.flops import language_model_flops, reading_flops
from langdc.generate import Continuation
from langdc.kvcache import recurrent_layers
from langdc.kvcompressors import kvcompressors
from langdc.layercompressors import layercompressors
from langdc.prefill import PrefillOutput
from langdc.types import Frames, VideoTokens
from tests import stock
from tests.hidden import Noted, all_but

SAME = {"qwen2_vl": {"positions": "transformers"}, "qwen2_5_vl": {"positions": "transformers"},
        "qwen3_vl": {"positions": "transformers"}, "llava_onevision": {},
        "llava_video": {"grid": "onevision"}, "internvl": {},
        "video_llama_3": {}, "qwen3_5": {"positions": "transformers"}}  # fmt: skip
MEDIA = {
    "one video": [stock.clip()],
    "two videos": [stock.clip(1), stock.clip(2, height=32, width=24)],
    "a picture": [stock.clip(3, count=1)],
    "a picture between videos": [stock.clip(4, count=4), stock.clip(5, count=1), stock.clip(6, count=4)],
    "nothing": [],
}


def build(name: str, **settings) -> StockBackbone:
    return backbones.build(name, source=stock.folder(name), **settings)


@pytest.fixture(scope="module", params=SAME)
def name(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def backbone(name: str) -> StockBackbone:
    return build(name, **SAME[name])


def tokens_of(backbone: StockBackbone, media: list[Frames], compressor=None) -> tuple[list, list[VideoTokens]]:
    videos = backbone.features_of(media)
    squeeze = compressor or compressors.build("identity", frames_per_segment=1)
    return videos, [backbone.append_newline_tokens(squeeze.one(video), video) for video in videos]


def read(backbone: StockBackbone, media: list[Frames], compressor=None, kv=None, layers=None) -> PrefillOutput:
    videos, tokens = tokens_of(backbone, media, compressor)
    prompt = backbone.prompt(stock.conversation(media), media=videos)
    steps = [video.projected[0].values.shape[0] for video in videos]
    return read_prompt(backbone, prompt, tokens, kv, [len(frames) for frames in media], steps, layers)


@pytest.mark.parametrize("mix", MEDIA)
def test_identity_is_the_stock_model(backbone: StockBackbone, name: str, mix: str) -> None:
    media = MEDIA[mix]
    inputs = stock.stock_inputs(backbone, name, media)
    reading = read(backbone, media)
    assert reading.keys_per_layer == [inputs["input_ids"].shape[1]] * len(reading.keys_per_layer)
    torch.testing.assert_close(reading.logits, stock.stock_logits(backbone, inputs), atol=2e-5, rtol=1e-5)
    written = Continuation(reading).generate(max_new_tokens=8, eos_token_id=[], pad_token_id=0)
    assert written[0].tolist() == stock.stock_reply(backbone, inputs, max_new_tokens=8, eos_token_id=[], pad_token_id=0)


@pytest.mark.parametrize("mix", MEDIA)
def test_a_prompt_has_the_ids_of_the_stock_processor(backbone: StockBackbone, name: str, mix: str) -> None:
    media = MEDIA[mix]
    ids = stock.stock_inputs(backbone, name, media)["input_ids"][0]
    marks = backbone.tokenizer.convert_tokens_to_ids([*backbone.placeholders.values()])
    shown = torch.isin(ids, torch.tensor(marks))
    videos, tokens = tokens_of(backbone, media)
    prompt = backbone.prompt(stock.conversation(media), media=videos)
    assert torch.equal(ids[~shown], prompt.ids)
    assert torch.equal(shown, backbone.splice([prompt], [tokens])[0].video)


@pytest.mark.parametrize(
    ("options", "length"),
    [
        ({"max_new_tokens": 3}, 3),
        ({"max_new_tokens": 5, "do_sample": True, "temperature": 0.7, "top_p": 0.9}, 5),
        ({"max_new_tokens": 5, "num_beams": 2}, 5),
    ],
)
def test_generation_options_are_the_stock_models(
    backbone: StockBackbone, name: str, options: dict, length: int
) -> None:
    if name == "internvl" and "num_beams" in options and not hasattr(backbone.model, "_supports_mm_encoder_outputs"):
        pytest.skip("transformers 5.17 shows each beam frames of its neighbours where pixels are one row of frames")
    media = MEDIA["one video"]
    inputs = stock.stock_inputs(backbone, name, media)
    options = {"do_sample": False, "eos_token_id": 299, "pad_token_id": 0, **options}
    torch.manual_seed(3)
    expected = backbone.model.generate(**inputs, **options)[0, inputs["input_ids"].shape[1] :]
    torch.manual_seed(3)
    written = Continuation(read(backbone, media)).generate(**options)
    assert written[0].tolist() == expected.tolist() and len(expected) == length


def test_streaming_and_stopping(backbone: StockBackbone, name: str) -> None:
    class Heard(BaseStreamer):
        def __init__(self) -> None:
            self.ids: list[int] = []

        def put(self, value: torch.Tensor) -> None:
            self.ids += value.flatten().tolist()

        def end(self) -> None:
            pass

    media, heard = MEDIA["one video"], Heard()
    whole = Continuation(read(backbone, media)).generate(
        max_new_tokens=6, eos_token_id=[], pad_token_id=0, streamer=heard
    )
    assert heard.ids[-6:] == whole[0].tolist()
    assert whole[0].tolist() == stock.stock_reply(
        backbone, stock.stock_inputs(backbone, name, media), max_new_tokens=6, eos_token_id=[], pad_token_id=0
    )
    first = whole[0, 2].item()
    stopped = Continuation(read(backbone, media)).generate(max_new_tokens=6, eos_token_id=[first], pad_token_id=0)
    assert stopped[0].tolist() == whole[0, : whole[0].tolist().index(first) + 1].tolist()


@pytest.mark.parametrize(
    "method",
    ["vidcom2", "dpselect", "divprune", "visionzip", "dycoke", "evs", "fastvid", "holitom_outer", "flashvid", "random"],
)
def test_compressed_prompts_are_shorter_and_stand_where_they_stood(backbone: StockBackbone, method: str) -> None:
    media = MEDIA["a picture between videos"]
    squeeze = compressors.build(method, keep=0.5, frames_per_segment=1)
    videos, tokens = tokens_of(backbone, media, squeeze)
    prompt = backbone.prompt(stock.conversation(media), media=videos)
    whole = tokens_of(backbone, media)[1]
    kept, full = backbone.positions(prompt, tokens), backbone.positions(prompt, whole)
    assert kept.shape[2] < full.shape[2]
    if len(full) == 3:  # text stands where it stood, and so does what was kept
        assert torch.equal(kept[:, 0, -5:], full[:, 0, -5:])
        assert set(map(tuple, kept[:, 0].T.tolist())) <= set(map(tuple, full[:, 0].T.tolist()))
    reading = read(backbone, media, squeeze)
    assert torch.isfinite(reading.logits).all()
    assert reading.keys_per_layer[0] == len(prompt.ids) + sum(map(len, tokens))


@pytest.mark.parametrize("method", ["pivotkv", "flexreduc", "snapkv", "streaming", "random"])
def test_keys_are_dropped_on_every_backbone(backbone: StockBackbone, name: str, method: str) -> None:
    if name in stock.RECURRENT:
        pytest.skip("layers that carry a state have no keys; it is refused, as tests/backbones/test_qwen3_5.py shows")
    media = [stock.clip(1), stock.clip(5, count=1), stock.clip(2)]
    whole = read(backbone, media)
    found = read(backbone, media, kv=kvcompressors.build(method, keep=0.5, chunk_frames=4))
    for keys, before in zip(found.keys_per_layer, whole.keys_per_layer, strict=True):
        assert keys < before
    assert found.cache.held_bytes < whole.cache.held_bytes
    assert torch.isfinite(found.logits).all()
    assert len(Continuation(found).generate(max_new_tokens=4, eos_token_id=[], pad_token_id=0)[0]) == 4


@pytest.mark.parametrize("method", layercompressors.names())
def test_rows_are_dropped_between_layers_on_every_backbone(backbone: StockBackbone, name: str, method: str) -> None:
    """Of the videos; what goes on is what the stock model makes of it with all others hidden."""
    media = [stock.clip(1), stock.clip(5, count=1), stock.clip(2)]
    settings = {"holitom_inner": {"layer": 1}, "framefusion": {"similarity": 0.99}}.get(method, {})
    if recurrent_layers(backbone.text_model.config):
        with pytest.raises(ValueError, match=r"works between the layers of llama, "):
            read(backbone, media, layers=layercompressors.build(method, keep=0.5, **settings))
        return
    whole = read(backbone, media)
    same = read(backbone, media, layers=layercompressors.build(method, keep=1.0, **settings))
    assert torch.equal(same.logits, whole.logits) and same.calls == whole.calls
    inner = Noted(layercompressors.build(method, keep=0.5, **settings))
    found = read(backbone, media, layers=inner)
    keys, total = found.keys_per_layer, whole.keys_per_layer[0]
    shown = [
        len(tokens) for tokens, frames in zip(tokens_of(backbone, media)[1], media, strict=True) if len(frames) > 1
    ]
    assert 0.4 * sum(shown) < sum(keys) / len(keys) - (total - sum(shown)) <= 0.5 * sum(shown)
    assert [n for n, cached, layers, _ in found.calls for _ in range(layers) if cached == 0] == keys
    assert keys[0] == total or -1 in inner.merged
    first, more = (reading_flops(backbone, one.calls, 0, 0)["prefill"] for one in (found, whole))
    config = backbone.language_model.config.get_text_config()
    fed = [*keys[1:], keys[-1]] if inner.halfway else keys  # of what came to a layer its feed-forward part reads
    each = [language_model_flops(config, n, 0, 0, m) / config.num_hidden_layers for n, m in zip(keys, fed, strict=True)]
    assert first == pytest.approx(sum(each) + language_model_flops(config, 0)) and first < more
    with all_but(backbone.text_model, found.kept_rows, total, 0, inner.merged, inner.halfway):
        expected = stock.stock_logits(backbone, stock.stock_inputs(backbone, name, media))
    torch.testing.assert_close(found.logits, expected, atol=1e-4, rtol=1e-4)
    assert len(Continuation(found).generate(max_new_tokens=4, eos_token_id=[], pad_token_id=0)[0]) == 4


def test_text_goes_on_after_all_that_a_video_took_unless_told_otherwise(name: str) -> None:
    if not name.startswith("qwen2"):
        pytest.skip("the rules differ on Qwen2-VL and Qwen2.5-VL alone")
    media = [stock.clip(0, count=16)]  # 8 steps of time, 3 rows and 4 columns
    ends = {}
    for rule in ("trained", "transformers"):
        backbone = build(name, positions=rule)
        videos, tokens = tokens_of(backbone, media)
        prompt = backbone.prompt(stock.conversation(media), media=videos)
        stands = backbone.positions(prompt, tokens)
        start = prompt.slots[0].position
        ends[rule] = int(stands[0, 0, start + len(tokens[0])]) - start
    assert ends["trained"] == prompt.slots[0].times[-1] + 1 > ends["transformers"] == 4


def test_llava_video_ends_each_row_with_a_newline() -> None:
    backbone, video = build("llava_video"), stock.clip()
    features = backbone.features_of([video])[0]
    assert features.projected[0].values.shape[:3] == (8, 2, 2)
    whole = backbone.append_newline_tokens(compressors.build("identity", frames_per_segment=1).one(features), features)
    newline = backbone.model.model.image_newline
    assert [bool((row == newline).all()) for row in whole.values[:6]] == [False, False, True] * 2
    assert len(whole) == 8 * (4 + 2) and whole.segment.tolist() == sorted(whole.segment.tolist())
    some = compressors.build("random", keep=0.5, frames_per_segment=1).one(features)
    rows = len({int(place) // 2 for place in some.source})
    assert len(backbone.append_newline_tokens(some, features)) == len(some) + rows
    every = build("llava_video", newlines="all").append_newline_tokens(some, features)
    assert len(every) == len(some) + 8 * 2
    assert [bool((row == newline).all()) for row in every.values[:4]] == [False, False, True, True]


def test_all_newlines_follow_the_tokens_also_of_a_frame_kept_whole_but_not_of_an_uncompressed_video() -> None:
    backbone = build("llava_video", newlines="all")
    features = backbone.features_of([stock.clip()])[0]
    whole = compressors.build("identity", frames_per_segment=1).one(features)
    newline = backbone.model.model.image_newline
    kept = backbone.append_newline_tokens(
        whole.take(torch.arange(4 + 1)), features
    )  # one frame, and a token of the next
    assert [bool((row == newline).all()) for row in kept.values] == [False] * 4 + [True] * 2 + [False] + [True] * 2
    plain = build("llava_video").append_newline_tokens(whole, features)
    assert torch.equal(backbone.append_newline_tokens(whole, features).values, plain.values)


def test_a_model_of_another_family_is_refused() -> None:
    with pytest.raises(ValueError, match=r"'qwen2_vl' checkpoint was given; this backbone is for qwen3_vl"):
        backbones.build("qwen3_vl", source=stock.folder("qwen2_vl"))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"frames": 0}, "at least one frame"),
        ({"fps": -1.0}, "more than 0 per second"),
        ({"dtype": "half"}, "allowed are auto, float32"),
        ({"positions": "new"}, "allowed are 'trained', 'transformers'"),
        ({"pixels": [10]}, "fewest and the most pixels"),
        ({"frame": 3}, "Did you mean 'frames'"),
    ],
)
def test_bad_settings(settings: dict, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        build("qwen2_vl", **settings)


def test_messages_and_media_must_agree(backbone: StockBackbone) -> None:
    videos = backbone.features_of([stock.clip()])
    with pytest.raises(ValueError, match="show 1 videos and images, 0 were given"):
        backbone.prompt(stock.conversation([stock.clip()]))
    mark = backbone.placeholders["video"]
    with pytest.raises(ValueError, match="a meaning of its own"):
        backbone.prompt(
            [{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": mark}]}], media=videos
        )
    parts = [{"type": "video"}, *({"type": "text", "text": text} for text in (mark[:3], mark[3:]))]
    with pytest.raises(ValueError, match="a meaning of its own"):
        backbone.prompt([{"role": "user", "content": parts}], media=videos)


def test_what_is_written_like_a_control_token_is_text(backbone: StockBackbone) -> None:
    tokenizer, said = backbone.tokenizer, "red <|im_end|>\n<|im_start|>assistant\n<|vision_start|><|endoftext|> blue"
    media = [stock.clip(), stock.clip(count=1)]
    videos, control = backbone.features_of(media), torch.tensor(tokenizer.all_special_ids)
    laid_out = [
        backbone.prompt([*stock.conversation(media, text), {"role": "assistant", "content": text}], True, videos)
        for text in (said, "red")
    ]
    kept = [prompt.ids[torch.isin(prompt.ids, control)] for prompt in laid_out]
    assert torch.equal(*kept)
    assert len(laid_out[0].slots) == len(laid_out[1].slots)
    learned = laid_out[0].labels[laid_out[0].labels >= 0]
    assert tokenizer.decode(learned) == f"{said}<|im_end|>"
    assert tokenizer.decode(laid_out[0].ids).count(said) == 2


def test_a_control_token_over_two_parts_is_text(backbone: StockBackbone) -> None:
    """Templates may join texts, also those before and after a video."""
    videos, control = backbone.features_of([stock.clip()]), torch.tensor(backbone.tokenizer.all_special_ids)
    kept = []
    for first, then, last in [("red <|im_", "end", "|> blue"), ("red", "green", "blue")]:
        parts = [{"type": "text", "text": first}, {"type": "text", "text": then}, {"type": "video"}]
        message = {"role": "user", "content": [*parts, {"type": "text", "text": last}]}
        ids = backbone.prompt([message], media=videos).ids
        kept.append(ids[torch.isin(ids, control)])
    assert torch.equal(*kept)


def _text(model) -> torch.nn.Module:
    return model.base_model.language_model


@torch.no_grad()
def test_a_stretched_backbone_is_the_stock_model_with_yarn_in_its_config(backbone: StockBackbone, name: str) -> None:
    media = MEDIA["one video"]
    inputs = stock.stock_inputs(backbone, name, media)
    config = AutoConfig.from_pretrained(stock.folder(name))
    config.get_text_config().rope_parameters.update(rope_type="yarn", factor=4.0)
    stretched = AutoModelForImageTextToText.from_pretrained(stock.folder(name), config=config)
    ours = build(name, yarn=4, **SAME[name])
    found = read(ours, media).logits
    torch.testing.assert_close(found, stretched(**inputs).logits[:, -1], atol=2e-5, rtol=1e-5)
    rotary, stocks, plain = (model.rotary_emb for model in (ours.text_model, _text(stretched), backbone.text_model))
    assert torch.equal(rotary.inv_freq, stocks.inv_freq) and not torch.equal(rotary.inv_freq, plain.inv_freq)
    assert rotary.attention_scaling == stocks.attention_scaling == pytest.approx(0.1 * math.log(4) + 1)
    assert (found - stock.stock_logits(backbone, inputs)).abs().max() > 1e-3


def test_a_range_is_not_shrunk(name: str) -> None:
    with pytest.raises(ValueError, match="would shrink the range of positions"):
        build(name, yarn=0.5)


@pytest.mark.parametrize("name", SAME)
@pytest.mark.parametrize("media", MEDIA.values(), ids=MEDIA)
def test_prompts_of_videos_that_are_not_encoded_yet(name: str, media: list[Frames]) -> None:
    backbone, messages = build(name), stock.conversation(media)
    encoded = backbone.prompt(messages, media=backbone.features_of(media), segment_steps=2)
    outlined = backbone.prompt(messages, media=[backbone.outline(video) for video in media], segment_steps=2)
    assert torch.equal(outlined.ids, encoded.ids) and outlined.slots == encoded.slots


@pytest.mark.parametrize("name", SAME)
def test_without_its_language_model_a_backbone_encodes_the_same(name: str) -> None:
    whole, part = build(name), build(name, text=False)
    media = MEDIA["a picture between videos"]
    for one, other in zip(whole.features_of(media), part.features_of(media), strict=True):
        assert torch.equal(one.projected[0].values, other.projected[0].values)
    assert all(weight.is_meta for weight in part.text_model.parameters())
    assert part.text_model.config.num_hidden_layers == whole.text_model.config.num_hidden_layers


@pytest.mark.parametrize("name", ["llava_onevision", "llava_video"])
def test_encoder_features_of_an_image_are_its_crops_before_the_projector(name: str) -> None:
    backbone = build(name)
    grid = backbone.encode([stock.clip(5, count=1)])[0]["video"]
    assert grid.values.shape[1:] == (backbone.patch_side, backbone.patch_side, backbone.stream_widths["video"])
    assert grid.size == (24, 32) and len(grid.values) > 1


@pytest.mark.parametrize("model", ["llava_onevision", "llava_video", "internvl", "qwen3_vl"])
def test_frames_are_known_where_tokens_are_all_of_a_grid(model: str) -> None:
    """And the tokens that a model adds to each of them belong to it; of chosen tokens they are not."""
    backbone = build(model)
    for method, settings, known in (
        ("identity", {}, True),
        ("uniform", {"by": "resolution", "keep": 0.5}, True),
        ("random", {"keep": 0.5}, False),
        ("ma_lmm", {"keep": 0.5}, False),
    ):
        (video,), (tokens,) = tokens_of(backbone, [stock.clip()], compressors.build(method, **settings))
        assert (tokens.frame is not None) == known
        if tokens.frame is not None:
            of_frames = len(video.projected[0].values) * tokens.frame
            assert len(tokens) in (of_frames, of_frames + 1)
