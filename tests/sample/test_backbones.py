"""The packaged sample backbones can do what their cards claim."""

import hashlib
import json
from pathlib import Path

import pytest
import torch

from examples.sample_world.make_backbones import PATCH, TARGETS, encode_frames
from examples.sample_world.pretrain_encoders import linear_probe
from examples.sample_world.pretrain_language import accuracy, blurred, build_model
from examples.sample_world.tokenizer import build_tokenizer
from langdc.cli import main
from langdc.encoders.image import CLIP_MEAN, CLIP_STD, ImageEncoder
from langdc.encoders.video import IMAGENET_MEAN, IMAGENET_STD, VideoEncoder
from langdc.evaluate.comparison import read_results
from langdc.language_models import load_language_model, load_tokenizer
from langdc.sample import weights
from langdc.sample.dataset import make_dataset
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


@pytest.mark.slow
def test_the_language_model_answers_from_text():
    """`segment` is below the target of 0.95, and the card says so; the others have to stay where they are."""
    name = "sample:language_model"
    found = accuracy(load_language_model(name).eval(), load_tokenizer(name), videos=100, seed=SEED)
    card = json.loads((weights("language_model") / "card.json").read_text())
    assert all(found[kind] >= 0.95 for kind in ("count", "shape", "motion", "most", "describe")), found
    assert found["segment"] == pytest.approx(card["segment"], abs=0.15)


def test_the_captioner_is_the_one_that_the_seed_gives():
    torch.manual_seed(json.loads((weights("captioner") / "card.json").read_text())["seed"])
    model = build_model(build_tokenizer(), width=128, layers=4, spread=0.05, strength=4.0).half()
    packaged = load_language_model("sample:captioner").half().state_dict()
    assert all(torch.equal(tensor, packaged[name]) for name, tensor in model.state_dict().items())


def test_its_first_heads_look_back():
    model = load_language_model("sample:captioner", attention="eager").eval()
    ids = torch.randint(3, model.config.vocab_size, (1, 12), generator=torch.Generator().manual_seed(0))
    seen = model(ids, output_attentions=True).attentions[0][0]
    for head, offset in enumerate((1, 2)):
        assert seen[head].diagonal(-offset).mean() > 0.5
    assert seen[2:].diagonal(-1, 1, 2).mean() < 0.3, "the other heads have no such habit"


def test_noise_has_the_size_it_says():
    words = torch.randn(64, 40, 32, generator=torch.Generator().manual_seed(0)) * 3
    torch.manual_seed(1)
    error = (blurred(words, 0.5) - words).square().mean((1, 2)).sqrt() / words.square().mean((1, 2)).sqrt()
    assert 0.2 < error.mean() < 0.3 and error.max() < 0.55, "uniform between 0 and 0.5"
    assert torch.equal(blurred(words, 0.0), words)


def test_weights_are_small_enough_to_ship():
    files = list(weights("clip").parent.rglob("*.safetensors"))
    assert sum(file.stat().st_size for file in files) <= 12e6
    assert len({hashlib.sha256(file.read_bytes()).hexdigest() for file in files}) == len(files) == 9


@pytest.mark.slow
def test_the_model_that_sees_answers_what_captions_say_and_what_they_do_not(tmp_path: Path):
    make_dataset(tmp_path / "set", {"test": 40}, images=0, workers=1, varied=True)
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
