"""LangDC hands the captioner the right visual tokens and the backbone the right soft tokens, in order of segments."""

from itertools import chain

import pytest
import torch
from torch import Tensor

from langdc.compressors import build
from langdc.compressors.langdc import LangDC
from langdc.config import check
from tests import tiny
from tests.reference.pooling import slow_pool

CAPTIONS = [["red square left", "", "blue ring", "green cross up ; yellow ring still"], [""] * 4]


def make(**changes) -> LangDC:
    torch.manual_seed(0)
    settings = {"width": tiny.BACKBONE_WIDTH, "streams": {"image": 24, "video": 32}, **tiny.langdc_settings(**changes)}
    return build("langdc", **settings).eval()


def ids(compressor: LangDC, texts: list[list[str]]) -> list[list[Tensor]]:
    return [[compressor.captioner.encode(text) for text in of_video] for of_video in texts]


def test_visual_tokens_are_projected_then_pooled_per_segment_image_first() -> None:
    compressor = make(projector="mlp2x_gelu")
    videos = [tiny.features(0), tiny.features(1, count=1), tiny.features(2, count=8)]
    found = compressor.visual(videos)
    assert len(found) == 4 + 1 + 2
    expected = []
    for video in videos:
        for first in range(0, len(video.seconds), 4):
            parts = []
            for name, side in (("image", 3), ("video", 2)):
                projected = compressor.projectors[name](video.encoder[name].values[first : first + 4])
                parts.append(slow_pool(projected.detach(), side).flatten(0, 2))
            expected.append(torch.cat(parts))
    for tokens, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(tokens, wanted, atol=1e-5, rtol=1e-5)


def test_a_pool_of_0_leaves_a_stream_out() -> None:
    both, image, video = (make(pool=pool).visual([tiny.features(0)]) for pool in ([3, 2], [3, 0], [0, 2]))
    for first, second, expected in zip(image, video, both, strict=True):
        torch.testing.assert_close(torch.cat([first, second]), expected)
    compressor, called = make(pool=[3, 0]), []
    for name, projector in compressor.projectors.items():
        projector.register_forward_hook(lambda *_, name=name: called.append(name))
    compressor.visual([tiny.features(0)])
    assert called == ["image"]
    with pytest.raises(ValueError, match="leaves every stream out"):
        make(pool=[0, 0])


def test_tokens_are_the_projected_states_of_each_segment() -> None:
    compressor = make(max_soft_tokens=16)
    videos = [tiny.features(0), tiny.features(1)]
    found = compressor.supervised(videos, ids(compressor, CAPTIONS))
    direct = compressor.captioner.supervised(compressor.visual(videos), [*chain(*ids(compressor, CAPTIONS))])
    assert found.targets == direct.targets
    assert torch.equal(found.loss, direct.loss)
    tokens = compressor.project(videos, found.states)
    assert tokens[0].per_segment(4) == [len(caption.split()) for caption in CAPTIONS[0]]
    assert len(tokens[1]) == 0
    assert torch.equal(torch.cat(found.states[0]), torch.cat(direct.states[:4]))
    torch.testing.assert_close(tokens[0].values, compressor.post_projector(torch.cat(found.states[0])))


def test_a_batch_of_videos_is_captioned_as_each_alone() -> None:
    compressor = make()
    videos = [tiny.features(0), tiny.features(1, count=1), tiny.features(2, count=8)]
    together = compressor.caption(videos)
    assert [len(of_video) for of_video in together.ids] == [4, 1, 2]
    for number, video in enumerate(videos):
        alone = compressor.caption([video])
        assert [i.tolist() for i in alone.ids[0]] == [i.tolist() for i in together.ids[number]]


def test_the_base_comes_first() -> None:
    base = {"name": "pool", "sides": [2, 1]}
    dual, plain = make(base=base), make()
    dual.load_state_dict(plain.state_dict())
    video = tiny.features(0)
    found, soft, pooled = dual(video), plain(video), build("pool", sides=[2, 1])(video)
    assert torch.equal(found.values, torch.cat([pooled.values, soft.values]))
    assert torch.equal(found.segment, torch.cat([pooled.segment, soft.segment]))
    assert dual.needs == {"encoder", "projected"}
    assert plain.needs == {"encoder"}


def test_a_marker_opens_every_segment_even_a_silent_one() -> None:
    compressor = make(segment_marker=True, max_segments=4, max_soft_tokens=16)
    videos = [tiny.features(0), tiny.features(1)]
    states = compressor.supervised(videos, ids(compressor, CAPTIONS)).states
    tokens = compressor.project(videos, states)
    assert tokens[0].per_segment(4) == [len(caption.split()) + 1 for caption in CAPTIONS[0]]
    assert torch.equal(tokens[1].values, compressor.segment_marker)
    for number in range(4):
        assert torch.equal(tokens[0].values[tokens[0].segment == number][0], compressor.segment_marker[number])
    with pytest.raises(ValueError, match="5 segments; max_segments is 4"):
        compressor.project([tiny.features(0, count=20)], [[states[0][0]] * 5])


def test_captions_must_fit_the_segments() -> None:
    compressor = make()
    with pytest.raises(ValueError, match="3 captions for a video of 4 segments"):
        compressor.supervised([tiny.features(0)], [ids(compressor, CAPTIONS)[0][:3]])


def test_bad_settings() -> None:
    with pytest.raises(ValueError, match="pool has 1 sides, the backbone has the streams image, video"):
        make(pool=[3])
    with pytest.raises(ValueError, match=r"no setting 'layers'.*Did you mean 'layer'"):
        make(layers=2)
    with pytest.raises(ValueError, match=r"Unknown compressor 'pol'.*'pool'"):
        make(base={"name": "pol"})


def test_a_config_without_the_backbone_settings_is_complete() -> None:
    """Width, streams and frames per segment come from the backbone that the model is built with."""
    settings = check(type(tiny.config()), tiny.config().model_dump(), "again")
    model = tiny.model()
    assert settings == tiny.config()
    assert (model.compressor.post_projector.out_features, model.compressor.frames_per_segment) == (
        tiny.BACKBONE_WIDTH,
        4,
    )
