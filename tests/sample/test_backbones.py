"""The packaged sample backbones can do what their cards claim, and their makers make such ones."""

import hashlib
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from examples.sample_world import make_encoders
from examples.sample_world.make_encoders import HELD_OUT, PATCH, TARGETS, encode_frames
from examples.sample_world.pretrain_encoders import MOVING, STILL, batches, linear_probe
from examples.sample_world.pretrain_vlm import SAID, Asked, Bank, Seeing, accuracy
from examples.sample_world.small_language_model import blurred, build_model
from examples.sample_world.tokenizer import build_tokenizer
from langdc.cli import main
from langdc.encoders.image import CLIP_MEAN, CLIP_STD, ImageEncoder
from langdc.encoders.video import IMAGENET_MEAN, IMAGENET_STD, VideoEncoder
from langdc.evaluate.comparison import read_results
from langdc.language_models import load_language_model, load_tokenizer
from langdc.sample import weights
from langdc.sample.dataset import make_dataset
from langdc.sample.scenes import SIZE, sample_segment

FIELDS = {"clip": STILL, "internvideo2": MOVING}


def figures(folder: Path) -> dict[str, float]:
    """The rows of a card."""
    rows = re.findall(r"^\| ([\w ]+) \| ([\d.]+) \|$", (folder / "README.md").read_text(), re.MULTILINE)
    return {name: float(value) for name, value in rows}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("part", "make", "mean", "std"),
    [("clip", ImageEncoder, CLIP_MEAN, CLIP_STD), ("internvideo2", VideoEncoder, IMAGENET_MEAN, IMAGENET_STD)],
    ids=list(FIELDS),
)
def test_objects_are_read_off_scenes_of_four(part: str, make, mean, std):
    found = linear_probe(encode_frames(make(), mean, std), FIELDS[part], SIZE // PATCH, HELD_OUT)
    assert all(found[field] >= TARGETS[field] for field in FIELDS[part]), found
    said = figures(weights(part))
    assert found == pytest.approx({field: said[field] for field in FIELDS[part]}, abs=0.005)


def test_cards_say_how_long_and_how_well_encoders_learned():
    for part, fields in FIELDS.items():
        said = figures(weights(part))
        assert {"plain steps", "varied steps", *fields} == set(said)
        assert all(said[field] >= TARGETS[field] for field in fields)
    assert sorted(TARGETS) == sorted(MOVING)


def test_encoders_are_made_where_they_are_wanted(tmp_path: Path, monkeypatch, capsys):
    """From fresh weights: nothing of the packaged ones is read."""
    monkeypatch.setattr("langdc.sample.WEIGHTS", tmp_path / "nothing")
    monkeypatch.setattr(make_encoders, "batches", lambda seed, size, *more, **how: batches(seed, 3, *more, **how))
    monkeypatch.setattr(make_encoders, "linear_probe", lambda _, fields, *more: dict.fromkeys(fields, 0.98765))
    steps = ["--image-steps", "1", "1", "--video-steps", "1", "1"]
    for name, *more in (("one",), ("again", "--only", "clip")):
        assert make_encoders.main(["--out", str(tmp_path / name), *steps, *more]) == 0
    assert "start: 0.9877 is below the target of 0.99" in capsys.readouterr().out.replace("\n", " ")
    for part, fields in FIELDS.items():
        wanted = {"plain steps": 1, "varied steps": 1, "seed": 0, **dict.fromkeys(fields, 0.9877)}
        assert figures(tmp_path / "one" / part) == wanted
    one, again = (ImageEncoder(str(tmp_path / name / "clip")).model.state_dict() for name in ("one", "again"))
    assert all(torch.equal(tensor, again[name]) for name, tensor in one.items())
    model = VideoEncoder(str(tmp_path / "one" / "internvideo2")).model
    over_time = model.pos_embed[:, 1:].unflatten(1, (4, -1)).mean(1)
    torch.testing.assert_close(model.img_pos_embed[:, 1:], over_time, atol=1e-3, rtol=1e-2)


def test_the_first_heads_of_a_fresh_language_model_look_back():
    torch.manual_seed(0)
    model = build_model(build_tokenizer(), width=128, layers=1).eval()
    model.set_attn_implementation("eager")
    ids = torch.randint(3, model.config.vocab_size, (1, 12), generator=torch.Generator().manual_seed(0))
    seen = model(ids, output_attentions=True).attentions[0][0]
    for head, offset in enumerate((1, 2)):
        assert seen[head].diagonal(-offset).mean() > 0.5
    assert seen[2:].diagonal(-1, 1, 2).mean() < 0.3, "the other heads have no such habit"


def test_the_language_model_answers_from_captions():
    rng, tokenizer = np.random.default_rng(HELD_OUT), load_tokenizer("sample:language_model")
    segments = [sample_segment(rng, number % 5) for number in range(200)]
    bank = Bank(segments, torch.zeros(200, 2, 4, 4, 4, 1))
    seeing = Seeing(tokenizer, bank, 128, 2)
    seeing.model = load_language_model("sample:language_model").float().eval()
    seeing.model.config._attn_implementation = "branches"
    found = accuracy(seeing, Asked(tokenizer), bank, "words", 60, 0)
    assert {*found, "choice"} == set(SAID) and min(found.values()) > 0.9, found


def test_noise_has_the_size_it_says():
    words = torch.randn(64, 40, 32, generator=torch.Generator().manual_seed(0)) * 3
    torch.manual_seed(1)
    error = (blurred(words, 0.5) - words).square().mean((1, 2)).sqrt() / words.square().mean((1, 2)).sqrt()
    assert 0.2 < error.mean() < 0.3 and error.max() < 0.55, "uniform between 0 and 0.5"
    assert torch.equal(blurred(words, 0.0), words)


def test_weights_are_small_enough_to_ship():
    files = list(weights("clip").parent.rglob("*.safetensors"))
    assert sum(file.stat().st_size for file in files) <= 8e6
    assert len({hashlib.sha256(file.read_bytes()).hexdigest() for file in files}) == len(files) == 5


@pytest.mark.slow
def test_the_model_that_sees_answers_what_captions_say_and_what_they_do_not(tmp_path: Path):
    make_dataset(tmp_path / "set", {"test": 40}, images=0, workers=1)
    settings = {"task": {"name": "sample", "data": str(tmp_path / "set/test.jsonl")}, "output": str(tmp_path / "eval")}
    entries = [{"name": "all", "model": "sample:vlm"}]
    entries += [{"name": "few", "model": "sample:vlm", "compressor": {"name": "random", "keep": 0.05}}]
    tree = {**settings, "entries": entries, "max_new_tokens": 8, "timing_videos": 0}
    (tmp_path / "eval.json").write_text(json.dumps(tree))
    assert main(["eval", str(tmp_path / "eval.json")]) == 0
    every, few = read_results([tmp_path / "eval"])
    shares = {group: share.value for group, (share, _) in every.groups.items()}
    assert shares["said"] > 0.85 and shares["unsaid"] > 0.9
    assert every.accuracy is not None and few.accuracy is not None
    assert few.accuracy.value < every.accuracy.value - 0.1, "a twentieth of the tokens is too few"
