"""The packaged sample encoders see what their cards claim."""

import pytest

from data_prep.sample_backbones import PATCH, TARGETS, encode_frames
from langdc.encoders.image import CLIP_MEAN, CLIP_STD, ImageEncoder
from langdc.encoders.video import IMAGENET_MEAN, IMAGENET_STD, VideoEncoder
from langdc.sample.pretrain_encoders import linear_probe
from langdc.sample.scenes import SIZE

SEED = 4_000_000


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "mean", "std", "fields"),
    [
        (lambda: ImageEncoder("sample:clip"), CLIP_MEAN, CLIP_STD, ("colour", "shape")),
        (VideoEncoder, IMAGENET_MEAN, IMAGENET_STD, ("colour", "shape", "motion")),
    ],
    ids=["clip", "internvideo2"],
)
def test_objects_are_read_off_scenes_of_four(make, mean, std, fields):
    found = linear_probe(encode_frames(make(), mean, std), fields, SIZE // PATCH, SEED)
    assert all(found[field] >= TARGETS[field] for field in fields), found
