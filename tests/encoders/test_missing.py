"""Folders of weights that lack tensors are refused: these would stay random, and others at every load."""

from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from langdc.checkpoint import published
from langdc.encoders import encoders
from langdc.language_models import load_language_model
from langdc.sources import resolve


def copied(source: str, folder: Path, drop: str) -> str:
    """A folder of weights without the tensors whose name has `drop` in it."""
    found = resolve(source)
    assert isinstance(found, Path)
    for file in found.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    tensors = load_file(folder / "model.safetensors")
    left = {name: tensor for name, tensor in tensors.items() if drop not in name}
    assert drop == "-" or len(left) < len(tensors)
    save_file(left, folder / "model.safetensors", metadata={"format": "pt"})
    return str(folder)


@pytest.mark.parametrize(
    ("kind", "source", "drop"),
    [("image", "sample:clip", "layers.0."), ("internvideo2", "sample:internvideo2", "blocks.0.")],
)
def test_encoders(tmp_path: Path, kind: str, source: str, drop: str):
    with pytest.raises(ValueError, match=r"\d+ missing: "):
        encoders.build(kind, source=copied(source, tmp_path, drop))
    whole = tmp_path / "whole"
    whole.mkdir()
    encoder = encoders.build(kind, source=copied(source, whole, "-"))
    assert published(encoder) == {"model": str(whole)}


def test_language_models(tmp_path: Path):
    with pytest.raises(ValueError, match=r"3 missing: model.layers.1.mlp"):
        load_language_model(copied("sample:language_model", tmp_path, "layers.1.mlp"))
    assert published(load_language_model("sample:language_model")) == {"": "sample:language_model"}
