"""Names of version 0.1 are read: settings, tensors and patterns over them."""

import pytest
import torch
from torch import nn

from langdc import compat
from langdc.compressors import build
from tests.compressors.test_resampler import PER_SEGMENT, STREAMS, WIDTH, features, make


def test_settings_at_any_depth() -> None:
    old = {"host": {"name": "qwen2_vl"}, "compressor": {"members": [{"name": "resampler", "most_side": 8}]}}
    new = {"backbone": {"name": "qwen2_vl"}, "compressor": {"members": [{"name": "resampler", "max_side": 8}]}}
    assert compat.settings(old) == new
    assert compat.settings(new) == new


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("host.projectors.image.0.weight", "backbone.projectors.image.0.weight"),
        ("compressor.segment_marker", "compressor.segment_marker.weight"),
        ("compressor.segment_marker.weight", "compressor.segment_marker.weight"),
        ("compressor.members.0.queries", "compressor.members.0.queries.weight"),
        ("compressor.post_projector.*", "compressor.post_projector.*"),
        ("compressor.*", "compressor.*"),
    ],
)
def test_names_and_patterns(old: str, new: str) -> None:
    assert compat.tensor_name(old) == new


def test_a_tensor_that_the_model_has_keeps_its_name() -> None:
    """Another compressor may have a parameter of the old name."""
    tensor = {"compressor.queries": torch.ones(2, 3)}
    assert list(compat.tensors(tensor)) == ["compressor.queries.weight"]
    assert list(compat.tensors(tensor, {"compressor.queries"})) == ["compressor.queries"]


@torch.no_grad()
def test_a_resampler_of_before_gives_the_same_tokens() -> None:
    """Its attention was torch's, with the weights of query, key and value in one tensor, and its tables were bare."""
    new, attention = make(depth=1, heads=2), nn.MultiheadAttention(WIDTH, 2, batch_first=True).eval()
    old = {f"compressor.{name.removesuffix('.weight') if name.count('.') == 1 else name}": tensor
           for name, tensor in new.state_dict().items() if ".attention." not in name}  # fmt: skip
    old |= {f"compressor.blocks.0.attention.{name}": tensor for name, tensor in attention.state_dict().items()}
    read = {name.removeprefix("compressor."): tensor for name, tensor in compat.tensors(old).items()}
    loaded = build(
        "resampler", width=WIDTH, streams=STREAMS, queries=3, depth=1, heads=2, frames_per_segment=PER_SEGMENT
    )
    loaded.load_state_dict(read)
    asking, seen = torch.randn(2, 3, WIDTH), torch.randn(2, 7, WIDTH)
    everything = torch.ones(2, 3, 7, dtype=torch.bool)
    expected = attention(asking, seen, seen, need_weights=False)[0]
    torch.testing.assert_close(loaded.blocks[0].attention(asking, seen, everything), expected, atol=1e-5, rtol=0)
    assert loaded([features(5)]).tokens[0].values.shape == (6, WIDTH)
