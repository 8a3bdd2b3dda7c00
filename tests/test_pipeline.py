"""From an mp4 file to an answer, on stock checkpoints and on our own, with any compressor."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from langdc import VideoLM, checkpoint
from langdc.compressors import compressors
from langdc.generate import Continuation
from langdc.interfaces import TokenCompressor
from langdc.layercompressors import layercompressors
from langdc.pipeline import OpenVideo
from langdc.types import Compressed, Context, VideoFeatures, VideoTokens
from tests import stock, tiny

QUESTION = "what is in the video ?"


@pytest.fixture(scope="module")
def mp4(tmp_path_factory) -> Path:
    return stock.mp4(tmp_path_factory.mktemp("clips"), count=24, fps=12)


@pytest.mark.parametrize("name", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl", "llava_onevision"])
def test_a_stock_directory_is_asked_about_a_file(name: str, mp4: Path) -> None:
    lm = VideoLM.from_pretrained(stock.folder(name), backbone={"frames": 8})
    answer = lm.ask(mp4, QUESTION, max_new_tokens=4)
    less = VideoLM.from_pretrained(stock.folder(name), {"name": "vidcom2", "keep": 0.25}, backbone={"frames": 8})
    shorter = less.ask(mp4, QUESTION, max_new_tokens=4)
    assert shorter.tokens_before == answer.tokens_before
    assert shorter.tokens <= 0.25 * answer.tokens_before + 1 < answer.tokens
    assert set(answer.seconds) == {"decode", "preprocess", "encode", "compress", "prefill", "generate"}
    assert sum(answer.segment_tokens) == answer.tokens
    assert shorter.flops["prefill"] < answer.flops["prefill"] and answer.flops["encode"] > 0
    assert answer.keys_per_layer is None


def test_keys_are_dropped_and_reported(mp4: Path) -> None:
    lm = VideoLM.from_pretrained(
        stock.folder("qwen2_5_vl"),
        {"name": "dpselect", "keep": 1.0},
        {"name": "pivotkv", "keep": 0.5, "chunk_frames": 4},
        {"frames": 16},
    )
    answer = lm.ask(mp4, QUESTION, max_new_tokens=4)
    plain = VideoLM.from_pretrained(stock.folder("qwen2_5_vl"), backbone={"frames": 16}).ask(mp4, QUESTION)
    text = max(answer.keys_per_layer) - answer.tokens // 2
    assert 0 < text < 40 and answer.tokens == plain.tokens
    assert answer.flops["prefill"] < plain.flops["prefill"]


def test_a_picture_and_no_video(mp4: Path, tmp_path: Path) -> None:
    Image.fromarray(stock.clip(2, count=1).pixels[0].permute(1, 2, 0).numpy()).save(tmp_path / "one.png")
    lm = VideoLM.from_pretrained(stock.folder("qwen3_vl"), "identity", {"name": "flexreduc", "keep": 0.5})
    assert lm.ask(tmp_path / "one.png", QUESTION, max_new_tokens=2).segment_tokens[0] > 0
    assert isinstance(lm.ask(None, "how many ?", max_new_tokens=2).text, str)


def test_frames_follow_the_clock_up_to_a_limit(mp4: Path) -> None:
    two = VideoLM.from_pretrained(stock.folder("qwen2_vl"), backbone={"fps": 2.0, "frames": 64})
    assert len(two.open(mp4).times) == 4  # two seconds
    assert len(two.open(mp4, start=0.5, end=1.5).times) == 2
    few = VideoLM.from_pretrained(stock.folder("qwen2_vl"), backbone={"fps": 20.0, "frames": 6})
    assert len(few.open(mp4).times) == 6


def test_frames_are_read_at_the_size_that_the_encoder_takes(mp4: Path) -> None:
    lm = VideoLM.from_pretrained(stock.folder("qwen2_vl"), backbone={"frames": 4, "pixels": [64, 1024]})
    frames = lm.open(mp4).frames
    assert frames.pixels.shape[2] * frames.pixels.shape[3] <= 1024
    assert frames.pixels.shape[2] % 8 == 0 and frames.pixels.shape[3] % 8 == 0


def test_two_models_with_other_compressors_live_side_by_side(mp4: Path) -> None:
    folder = stock.folder("qwen2_vl")
    plain = VideoLM.from_pretrained(folder, backbone={"frames": 8})
    kv = VideoLM.from_pretrained(folder, kv={"name": "snapkv", "keep": 0.3, "chunk_frames": 2}, backbone={"frames": 8})
    before = plain.ask(mp4, QUESTION, max_new_tokens=6)
    thinned = kv.ask(mp4, QUESTION, max_new_tokens=6)
    assert plain.ask(mp4, QUESTION, max_new_tokens=6).text == before.text
    assert kv.ask(mp4, QUESTION, max_new_tokens=6).text == thinned.text
    assert plain.model.backbone.text_model.config._attn_implementation == "sdpa"


def test_a_method_chooses_among_the_tokens_of_a_models_pool(mp4: Path) -> None:
    """Those are what its language model learned to read."""
    model = tiny.model("pool")
    whole = VideoLM(model).open(mp4).tokens
    kept = VideoLM(model, compressors.build("random", tokens=40)).open(mp4).tokens
    places = [int((whole.values == row).all(1).nonzero()[0]) for row in kept.values]
    assert len(places) == 40 and kept.source is not None and kept.source.tolist() == places == sorted(set(places))
    every = VideoLM(model, compressors.build("random", keep=1.0, frames_per_segment=4)).open(mp4)
    assert torch.equal(every.tokens.values, whole.values) and every.features.grid == (16, 3, 3)
    assert len(VideoLM(model, compressors.build("pool", sides=[1, 1])).open(mp4).tokens) == 32, "another pool"


def test_a_model_that_reads_learned_tokens_is_not_given_others():
    with pytest.raises(ValueError, match=r"Random chooses among visual tokens.* those of LangDC.*trained with 'pool'"):
        VideoLM(tiny.model("langdc"), compressors.build("random", keep=0.5))


def test_a_chain_that_begins_with_a_pool_lends_its_tokens_as_the_pool_does(mp4: Path) -> None:
    pool = {"name": "pool", "sides": [3, 2]}
    model = tiny.model("chain", members=[pool, {"name": "random", "tokens": 8}])
    whole = VideoLM(model, compressors.of(pool)).open(mp4).tokens
    every = VideoLM(model, compressors.build("identity")).open(mp4)
    assert torch.equal(every.tokens.values, whole.values) and every.features.grid == (16, 3, 3)
    assert len(VideoLM(model).open(mp4).tokens) == 8
    again = VideoLM(model, compressors.build("chain", members=[pool, {"name": "uniform", "keep": 1.0}])).open(mp4)
    assert torch.equal(again.tokens.values, whole.values)


def test_a_layer_compressor_by_name_settings_or_object(mp4: Path) -> None:
    folder = stock.folder("qwen2_vl")
    texts = set()
    for given in ({"name": "dart", "keep": 0.5}, layercompressors.build("dart", keep=0.5)):
        lm = VideoLM.from_pretrained(folder, layers=given, backbone={"frames": 8})
        answer = lm.ask(mp4, QUESTION, max_new_tokens=6)
        assert answer.keys_per_layer[0] > answer.keys_per_layer[1] == answer.keys_per_layer[2]
        texts.add(answer.text)
    assert len(texts) == 1
    with pytest.raises(ValueError, match="A budget is either keep"):
        VideoLM.from_pretrained(folder, layers="dart")


def test_several_questions_at_once(mp4: Path) -> None:
    for settings in ({}, {"kv": {"name": "pivotkv", "keep": 0.5}}, {"layers": {"name": "fastv", "keep": 0.5}}):
        lm = VideoLM.from_pretrained(stock.folder("llava_onevision"), backbone={"frames": 8}, **settings)
        video = lm.open(mp4)
        asked = [QUESTION, "how many of them ?", QUESTION]
        together = lm.answer([(video, question) for question in asked], max_new_tokens=4)
        assert [one.text for one in together] == [video.ask(question, max_new_tokens=4).text for question in asked]


def test_our_own_checkpoints_take_kv_compressors(mp4: Path) -> None:
    lm = VideoLM.from_pretrained("sample:langdc", kv={"name": "random", "keep": 0.5, "chunk_frames": 4})
    answer = lm.ask(mp4, "how many objects are in segment 2 ?")
    assert answer.keys_per_layer is not None and answer.captions is not None


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"compressor": {"name": "vidcom2", "keep": 0}}, r"keep=0 is not in \(0, 1\]"),
        ({"compressor": {"name": "vidcom3", "keep": 0.5}}, "Did you mean 'vidcom2'"),
        ({"compressor": {"name": "vidcom2", "kep": 0.5}}, "Did you mean 'keep'"),
        ({"kv": {"name": "pivot", "keep": 0.5}}, "Did you mean 'pivotkv'"),
        ({"backbone": {"frames": 0}}, "at least one frame"),
        ({"backbone": {"name": "qwen9"}}, "Unknown backbone 'qwen9'"),
    ],
)
def test_settings_that_cannot_work(settings: dict, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        VideoLM.from_pretrained(stock.folder("qwen3_vl"), **settings)


def test_directories_without_a_model_that_is_served(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(
        ValueError, match=r"'bert' model; no backbone serves it\. Served are: internvl, llava_onevision, qwen2_5_vl"
    ):
        VideoLM.from_pretrained(tmp_path)


def test_a_checkpoint_of_ours_brings_its_backbone_along() -> None:
    with pytest.raises(ValueError, match="brings its backbone's settings along; leave out frames"):
        VideoLM.from_pretrained("sample:langdc", backbone={"frames": 8})


@pytest.mark.parametrize(
    ("compressor", "said"),
    [
        ({"name": "pool", "sides": [2, 2]}, r"projectors, which this checkpoint does not hold: .*10 tensors"),
        ({"name": "vidcom2", "keep": 0.25}, "projectors, which this checkpoint does not hold"),
        ({"name": "ldpv2", "sides": [2, 2]}, "has weights of its own"),
    ],
)
def test_a_checkpoint_lends_no_random_weights(compressor: dict, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        VideoLM.from_pretrained("sample:langdc", compressor)


def test_tensors_that_are_missing_are_named(tmp_path: Path) -> None:
    import shutil

    from safetensors.torch import load_file, save_file

    folder = tmp_path / "model"
    shutil.copytree(stock.folder("qwen2_vl"), folder)
    tensors = load_file(folder / "model.safetensors")
    gone = next(name for name in tensors if "layers.1.self_attn.q_proj.weight" in name)
    tensors.pop(gone)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=f"1 missing: model.language_{re.escape(gone)}"):
        VideoLM.from_pretrained(folder)


def test_features_that_are_not_numbers_are_refused(mp4: Path) -> None:
    lm = VideoLM.from_pretrained(stock.folder("qwen2_vl"), {"name": "vidcom2", "keep": 0.5}, backbone={"frames": 4})
    video = lm.open(mp4)
    video.features.projected[0].values[0, 0, 0, 0] = torch.nan
    with pytest.raises(ValueError, match="not finite"):
        video.ask(QUESTION)


class Nearest(TokenCompressor):
    """Keep the tokens that are nearest to the question."""

    needs = frozenset({"projected", "question"})

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[int] = []

    def forward(self, videos: list[VideoFeatures], context: Context = Context()) -> Compressed:
        self.calls.append(len(videos))
        return super().forward(videos, context)

    def one(self, video: VideoFeatures) -> VideoTokens:
        assert video.question is not None
        grid = video.projected[0].values
        score = grid.flatten(0, 2) @ video.question.mean(0)
        source = score.topk(3).indices.sort().values
        places = grid.shape[1:3].numel()
        return VideoTokens(grid.flatten(0, 2)[source], source // places, source)


def test_a_compressor_that_needs_the_question_compresses_once_per_question() -> None:
    lm = VideoLM(checkpoint.open_model(stock.folder("qwen2_5_vl")), Nearest())
    backbone, asked = lm.model.backbone, ["what is red ?", "how many of them ?"]
    video = OpenVideo(lm, None, backbone.encode([stock.clip()])[0], stock.clip().seconds)
    for _ in range(2):
        lm.answer([(video, question) for question in asked], max_new_tokens=2)
    assert lm.compressor.calls == [2]
    words = backbone.language_model.get_input_embeddings()
    for question, found in zip(asked, lm.compress([(video, question) for question in asked]), strict=True):
        ids = torch.tensor(backbone.tokenizer(question, add_special_tokens=False)["input_ids"])
        expected = lm.compressor.one(replace(video.features, question=words(ids)))
        assert torch.equal(found.tokens.source, expected.source)
    with pytest.raises(ValueError, match="compresses for a question"):
        _ = video.tokens


def test_padding_of_captions_is_read_alone_also_in_a_batch(sample_video) -> None:
    """`generate` of a padded batch would never let a reply attend to it."""
    lm = VideoLM(tiny.model("langdc", soft_token="released"))
    video = lm.open(sample_video)
    questions = ["what shape is the red object ?", "where ?"]
    together = lm.answer([(video, question) for question in questions], max_new_tokens=4)
    assert [answer.text for answer in together] == [video.ask(q, max_new_tokens=4).text for q in questions]
    prompt = lm.prompt(questions[0], video)
    whole = Continuation(lm.read(prompt, [video])).generate(max_new_tokens=4, eos_token_id=[], pad_token_id=0)
    assert len(whole[0]) == 4 and (video.tokens.padding is None or video.tokens.padding.any())


@pytest.mark.parametrize("source", ["tiny:qwen2_vl", "tiny:llava_onevision", "sample:langdc"])
@pytest.mark.parametrize("dtype", ["bfloat16", torch.float16])
def test_a_model_is_asked_in_the_type_that_is_wanted(source: str, dtype: str | torch.dtype, mp4: Path) -> None:
    settings = {"frames": 4} if source.startswith("tiny:") else None
    lm = VideoLM.from_pretrained(source, backbone=settings, device="cpu", dtype=dtype)
    found = {str(weight.dtype) for weight in lm.model.parameters()}
    assert found == {f"torch.{str(dtype).removeprefix('torch.')}"}
    video = lm.open(mp4)
    exact = VideoLM.from_pretrained(source, backbone=settings, device="cpu", dtype="float32").open(mp4)
    for name, grid in exact.encoder.items():
        error = (video.encoder[name].values.float() - grid.values.float()).abs().mean()
        assert error < 0.05 * grid.values.float().abs().mean()
    assert video.ask(QUESTION, max_new_tokens=2).tokens > 0


def test_a_type_is_said_once(mp4: Path) -> None:
    half = VideoLM.from_pretrained(stock.folder("qwen2_vl"), backbone={"dtype": "bfloat16"})
    assert half.model.backbone.model.dtype == torch.bfloat16
    with pytest.raises(ValueError, match=r"dtype is float16, and bfloat16 among the backbone's settings"):
        VideoLM.from_pretrained(stock.folder("qwen2_vl"), backbone={"dtype": "bfloat16"}, dtype="float16")
    with pytest.raises(ValueError, match=r"dtype is 'half'; allowed are auto, float32"):
        VideoLM.from_pretrained(stock.folder("qwen2_vl"), dtype="half")
    with pytest.raises(ValueError, match=r"device 'tpu' is not on this machine"):
        VideoLM.from_pretrained(stock.folder("qwen2_vl"), device="tpu")
