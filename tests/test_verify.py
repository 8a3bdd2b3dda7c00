"""What is saved is loaded by a fresh process, and every tensor that differs is named."""

import json
import os
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from langdc import checkpoint, verify
from langdc.hashing import file_hash
from langdc.model import VideoModel
from langdc.verify import Fingerprint, differences, fingerprint, main, open_saved, probe, verify_saved
from tests import tiny

POST = "compressor.post_projector.weight"


def save(model: VideoModel, folder: Path) -> Path:
    tensors = checkpoint.own_tensors(model, [name for name, _ in model.named_parameters()])
    checkpoint.save(model, folder, tensors=tensors, info={})
    return folder


def tamper(folder: Path, name: str) -> None:
    """Change one tensor, and the hash beside it, so that loading has nothing to say."""
    tensors = load_file(folder / checkpoint.WEIGHTS)
    tensors[name] = tensors[name] + 1e-3
    save_file(tensors, folder / checkpoint.WEIGHTS)
    card = json.loads((folder / checkpoint.CARD).read_text())
    card["weights_sha256"] = file_hash(folder / checkpoint.WEIGHTS)
    (folder / checkpoint.CARD).write_text(json.dumps(card))


def test_a_fresh_process_finds_what_was_saved_and_names_what_was_not(tmp_path: Path) -> None:
    model = tiny.model()
    folder = save(model, tmp_path / "run")
    expected = fingerprint(model)
    seen = verify_saved(folder, expected)
    assert seen.tensors == len(expected.tensors) and seen.difference < 1e-4
    tamper(folder, POST)
    with pytest.raises(ValueError, match=f"{POST} has other values"):
        verify_saved(folder, expected)


def test_what_cannot_be_loaded_is_told_with_its_reason(tmp_path: Path) -> None:
    model = tiny.model("pool")
    folder = save(model, tmp_path / "run")
    file = folder / checkpoint.WEIGHTS
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(ValueError, match=r"a fresh process cannot load it(.|\n)*missing, cut off or replaced"):
        verify_saved(folder, fingerprint(model))


def test_a_parameter_that_no_save_holds_is_named(tmp_path: Path) -> None:
    """An empty adapter, or a part left random, is how weights get lost unnoticed."""
    model = tiny.model()
    names = [name for name, _ in model.named_parameters() if name != POST]
    checkpoint.save(model, tmp_path / "run", tensors=checkpoint.own_tensors(model, names), info={})
    lines = differences(fingerprint(model), fingerprint(open_saved(tmp_path / "run")))
    assert f"{POST} has other values" in lines


def test_projectors_that_nothing_reads_may_be_left_random(tmp_path: Path) -> None:
    model = tiny.model()
    names = [name for name, _ in model.named_parameters() if not name.startswith("backbone.projectors.")]
    checkpoint.save(model, tmp_path / "run", tensors=checkpoint.own_tensors(model, names), info={})
    assert differences(fingerprint(model), fingerprint(open_saved(tmp_path / "run"))) == []


def test_logits_are_compared_too(tmp_path: Path) -> None:
    found = fingerprint(tiny.model("pool"))
    other = replace(found, logits=[value * 1.01 for value in found.logits])
    assert "logits differ by 1.00e-02" in differences(found, other)[0]
    assert "logits differ by inf" in differences(found, replace(found, logits=found.logits[:-1]))[0]
    assert differences(replace(found, logits=[]), other) == []
    missing = {name: value for name, value in found.tensors.items() if name != "backbone.language_model.lm_head.weight"}
    assert differences(found, replace(found, tensors=missing)) == ["backbone.language_model.lm_head.weight is missing"]
    assert differences(replace(found, tensors=missing), found) == [
        "backbone.language_model.lm_head.weight was not saved"
    ]


def test_the_probe_is_read_through_captions_and_does_not_change_the_model() -> None:
    model = tiny.model().train()
    first = probe(model)
    assert model.training and torch.equal(first, probe(model))
    with torch.no_grad():
        model.get_parameter("compressor.captioner.language_model.model.layers.0.input_layernorm.weight").mul_(2)
    assert not torch.equal(first, probe(model))


def test_a_model_of_a_shorter_type_is_compared_in_that_type(tmp_path: Path) -> None:
    model = tiny.model("pool")
    folder = save(model, tmp_path / "run")
    expected = fingerprint(model.bfloat16(), logits=False)
    assert {kind for kind, _ in expected.tensors.values()} == {"bfloat16"}
    (tmp_path / "expected").write_text(json.dumps(asdict(expected)))
    assert main([str(folder), str(tmp_path / "expected"), str(tmp_path / "found")]) == 0
    assert differences(expected, Fingerprint(**json.loads((tmp_path / "found").read_text()))) == []


def test_a_checkpoint_in_4_bits_is_read_whole_where_there_is_no_accelerator(tmp_path: Path) -> None:
    """Of a run on a small card: its adapters and all that is not packed are compared."""
    model = tiny.model()
    folder = save(model, tmp_path / "run")
    card = json.loads((folder / checkpoint.CARD).read_text())
    card["model"]["backbone"]["quantize"] = "nf4"
    card["model"]["compressor"]["attention"] = "flash_attention_2"
    (folder / checkpoint.CARD).write_text(json.dumps(card))
    with pytest.raises(ValueError, match="nf4"):
        checkpoint.load(folder)
    packed = [name for name, _ in model.named_parameters() if name.endswith("up_proj.weight") and "backbone." in name]
    expected = fingerprint(model, logits=False)
    kept = {name: value for name, value in expected.tensors.items() if name not in packed}
    seen = verify_saved(folder, replace(expected, tensors=kept, packed=packed))
    assert packed and seen.tensors == len(kept)


@pytest.mark.slow
def test_the_process_that_reads_is_started_again_when_it_has_ended(tmp_path: Path) -> None:
    model = tiny.model("pool")
    folder = save(model, tmp_path / "run")
    expected = fingerprint(model, logits=False)
    verify_saved(folder, expected)
    reader = verify._reader(os.getpid())
    reader._process.kill()
    reader._process.wait()
    assert verify_saved(folder, expected).tensors == len(expected.tensors)
    assert verify._reader(os.getpid()) is not reader
