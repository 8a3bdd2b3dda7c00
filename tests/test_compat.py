"""Names of version 0.1 are read: settings, tensors and patterns over them, modules, classes, entry points."""

import importlib
import importlib.metadata
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from langdc import backbones, checkpoint, compat, registry
from langdc.backbones.chat import conversation
from langdc.compressors import build
from langdc.interfaces import TokenCompressor
from langdc.registry import Registry
from langdc.types import FeatureGrid, VideoBatch, VideoFeatures, VideoTokens
from tests import tiny
from tests.compressors.test_resampler import PER_SEGMENT, STREAMS, WIDTH, features, make

GOLDEN = Path(__file__).parent / "golden" / "version_0_1"


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


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Warnings, as if nothing had been said before."""
    lines: list[str] = []
    monkeypatch.setattr(compat, "_warned", set())
    monkeypatch.setattr(compat.logger, "warning", lambda text, *words: lines.append(text % words))
    return lines


def test_hosts_is_another_name_of_backbones(said: list[str]):
    sys.modules.pop("langdc.hosts", None)
    hosts = importlib.import_module("langdc.hosts")
    assert hosts.hosts is backbones.backbones and hosts.host_of is backbones.backbone_of
    assert importlib.import_module("langdc.hosts.qwen2_5_vl") is backbones.qwen2_5_vl
    assert importlib.import_module("langdc.hosts.base").hosts is backbones.backbones
    assert sum("'langdc.hosts'" in line for line in said) == 1
    assert len(said) == len(set(said))


def projected(steps: int) -> VideoFeatures:
    return VideoFeatures((FeatureGrid(torch.randn(steps, 2, 2, 4)),), {}, torch.arange(steps).double())


def test_a_learned_compressor_of_before_works(said: list[str]):
    """Its forward compressed one video."""
    old = importlib.import_module("langdc.interfaces").LearnedCompressor

    class Mean(old):
        needs = frozenset({"projected"})

        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))

        def forward(self, video: VideoFeatures) -> VideoTokens:
            values = video.projected[0].values.flatten(0, 2).mean(0, keepdim=True) * self.scale
            return VideoTokens(values, torch.zeros(1, dtype=torch.long))

    assert issubclass(Mean, TokenCompressor)
    made = Mean()([projected(2), projected(3)])
    assert [len(tokens) for tokens in made.tokens] == [1, 1] and made.losses == {}
    assert made.tokens[0].values.requires_grad
    assert [line for line in said if "LearnedCompressor" in line] == said and len(said) == 1


def test_other_names_are_not_there():
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = backbones.nothing


def test_an_old_group_of_entry_points_is_read(said: list[str], monkeypatch: pytest.MonkeyPatch):
    groups = {
        "langdc.hosts": [importlib.metadata.EntryPoint("old", "collections:OrderedDict", "langdc.hosts")],
        "langdc.backbones": [importlib.metadata.EntryPoint("new", "collections:Counter", "langdc.backbones")],
    }
    monkeypatch.setattr(registry, "entry_points", lambda group: groups.get(group, []))
    members: Registry = Registry("backbone")
    assert members.names() == ["new", "old"]
    members.names()
    assert len(said) == 1 and "langdc.hosts" in said[0] and "langdc.backbones" in said[0]


@pytest.mark.slow
def test_a_warning_is_given_once_in_a_process():
    code = "from langdc.hosts import hosts, host_of; from langdc.hosts import hosts; import langdc.hosts.base"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert " ".join(done.stderr.split()).count("'langdc.hosts' is the name of version 0.1") == 1


@pytest.mark.parametrize("name", ["langdc", "resampler"])
def test_a_checkpoint_of_version_0_1_gives_the_same_logits(name: str, tmp_path: Path) -> None:
    """Written by its own code, with adapters; the logits after a question about noise were recorded there."""
    recorded = GOLDEN / name
    for file in ("langdc.json", "model.safetensors"):
        content = (recorded / file).read_bytes()
        (tmp_path / file).write_bytes(content.replace(b"TOKENIZER", tiny.tokenizer_folder().encode()))
    model, frames = checkpoint.load(tmp_path), tiny.frames(0)
    prompt = model.backbone.prompt(conversation("what shape ?"))
    batch = VideoBatch(model.backbone.encode([frames]), [frames.seconds], [prompt], [(0,)])
    with torch.no_grad():
        found = model(batch).logits
    expected = load_file(recorded / "logits.safetensors")["logits"]
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
