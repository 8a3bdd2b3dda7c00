"""Controls keep the tokens that they say, the same ones every time."""

import pytest
import torch

from langdc.evaluate.controls import build, fingerprint
from langdc.language_models import ids_of
from langdc.sample.scenes import as_text
from tests import tiny

MODEL = tiny.model("pool")
POOL = MODEL.compressor


def _random(trained, tokens: int, seed: int = 0):
    return build("random_tokens_mean", trained, MODEL.backbone, {"v": tokens}, str, seed)


def _uniform(tokens: float):
    return build("uniform_frames", POOL, MODEL.backbone, {"v": tokens}, str)


def _tokens(compressor, video):
    return compressor([video]).tokens[0]


def _rows_of(part: torch.Tensor, whole: torch.Tensor) -> list[int]:
    return [int((whole == row).all(1).nonzero()[0]) for row in part]


def test_random_tokens_are_drawn_by_seed_and_video():
    video, other = tiny.features(1), tiny.features(2)
    whole = _tokens(POOL, video)
    control = _random(POOL, 10, seed=0)
    kept = _rows_of(_tokens(control, video).values, whole.values)
    assert len(kept) == 10 and kept == sorted(set(kept))
    assert torch.equal(_tokens(control, video).segment, whole.segment[kept])
    assert kept == _rows_of(control([other, video]).tokens[1].values, whole.values)
    assert kept != _rows_of(_tokens(control, other).values, _tokens(POOL, other).values)
    assert kept != _rows_of(_tokens(_random(POOL, 10, seed=1), video).values, whole.values)


def test_every_token_is_equally_likely():
    video = tiny.features(1, count=2)
    whole = _tokens(POOL, video)
    drawn = torch.zeros(len(whole))
    for seed in range(400):
        drawn[_rows_of(_tokens(_random(POOL, 5, seed), video).values, whole.values)] += 1
    expected = 400 * 5 / len(whole)
    assert ((drawn - expected) ** 2 / expected).sum() < 60  # chi-square of 25 degrees: beyond 60 once in 10,000


def test_no_more_tokens_than_there_are():
    video = tiny.features(1, count=1)
    assert len(_tokens(_random(POOL, 99), video)) == len(_tokens(POOL, video)) == 13


@pytest.mark.parametrize(("most", "frames"), [(0.5, 1), (13, 1), (25.9, 1), (26, 2), (34, 2), (1e6, 16)])
def test_as_many_frames_as_fit(most: float, frames: int):
    assert len(_tokens(_uniform(most), tiny.features())) == 13 * frames


def test_the_frames_kept_are_kept_whole_in_both_streams():
    video = tiny.features()
    whole = _tokens(POOL, video).values
    image, motion = whole[: 16 * 9].view(16, 9, -1), whole[16 * 9 :].view(16, 4, -1)
    kept = {30: [4, 12], 52: [2, 6, 10, 14], 13: [8], 1000: list(range(16))}
    for most, frames in kept.items():
        expected = torch.cat([image[frames].flatten(0, 1), motion[frames].flatten(0, 1)])
        assert torch.equal(_tokens(_uniform(most), video).values, expected)


def test_stride_takes_every_kth_token_of_each_stream():
    video = tiny.features()
    whole = _tokens(POOL, video)
    found = _tokens(build("stride", POOL, MODEL.backbone, {"v": 20, "w": 32}, str), POOL.pooled(video))
    kept = [(2 * n + 1) * 144 // 36 for n in range(18)] + [144 + (2 * n + 1) * 64 // 16 for n in range(8)]
    assert torch.equal(found.values, whole.values[kept]) and torch.equal(found.segment, whole.segment[kept])


@pytest.mark.parametrize("kind", ["lower_resolution", "average_pooling"])
def test_averages_are_of_no_more_tokens_than_the_mean(kind: str):
    """16 frames of 3 x 3 and of 2 x 2: a share of 1/13 is a token of each frame; a fifth of it, those of few frames."""
    assert len(_tokens(build(kind, POOL, MODEL.backbone, {"v": 208}, str), POOL.pooled(tiny.features()))) == 208
    found = _tokens(build(kind, POOL, MODEL.backbone, {"v": 32}, str), POOL.pooled(tiny.features()))
    assert 26 <= len(found) <= 32 and found.source is not None


def test_captions_as_text_are_the_words_themselves():
    model = tiny.model("langdc")
    control = build("caption_text", model.compressor, model.backbone, {}, str)
    videos = [tiny.features(1), tiny.features(2)]
    tokens = control(videos).tokens
    written = model.compressor(videos).ids
    for found, ids in zip(tokens, written, strict=True):
        captions = [model.compressor.text(part) for part in ids]
        wanted = ids_of(model.backbone.tokenizer, as_text(captions))
        assert torch.equal(found.values, model.backbone.text_model.get_input_embeddings()(wanted))
        assert found.per_segment(4) == [len(ids_of(model.backbone.tokenizer, f"[1] {c}")) for c in captions]


def test_fingerprints_tell_videos_apart():
    one = fingerprint(tiny.features(1).encoder)
    assert one == fingerprint(tiny.features(1).encoder) != fingerprint(tiny.features(2).encoder)


def test_wrong_models_are_named():
    langdc = tiny.model("langdc")
    for kind in ("random_tokens", "stride"):
        with pytest.raises(ValueError, match="the compressor LangDC"):
            build(kind, langdc.compressor, langdc.backbone, {"v": 1}, str)
    with pytest.raises(ValueError, match="this one has Pool"):
        build("caption_text", POOL, langdc.backbone, {}, str)
