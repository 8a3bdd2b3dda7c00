"""Frame selectors: what each member promises, its rule, and scores by image-text models."""

import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

from langdc.frameselectors import build, frameselectors
from langdc.frameselectors.base import ImageTextScorer
from langdc.types import Frames
from tests import imagetext, stock
from tests.reference.aks import aks

QUESTION = "which colour is the video at the end ?"
SCORED = ["aks", "top"]


def noise(count: int) -> Frames:
    pixels = torch.randint(
        0, 256, (count, 3, 16, 20), dtype=torch.uint8, generator=torch.Generator().manual_seed(count)
    )
    return Frames(pixels, torch.arange(count) / 2)


def make(name: str, **settings):
    return build(name, **settings, **({"scorer": imagetext.redness} if name in SCORED else {}))


@pytest.mark.parametrize("name", frameselectors.names())
@pytest.mark.parametrize(("count", "budget"), [(40, 8), (41, 7), (9, 8), (64, 1), (5, 5), (3, 6)])
def test_as_many_frames_as_the_budget_in_order(name: str, count: int, budget: int) -> None:
    frames = noise(count)
    before = frames.pixels.clone()
    places = make(name).select(frames, QUESTION, budget)
    assert places.dtype == torch.long and len(places) == min(budget, count)
    assert places.tolist() == sorted({*places.tolist()}) and places[0] >= 0 and places[-1] < count
    assert torch.equal(places, make(name).select(frames, QUESTION, budget))
    assert torch.equal(frames.pixels, before)


def test_every_scored_member_is_tested_with_a_scorer() -> None:
    assert {name for name in frameselectors.names() if not frameselectors.get(name).blind} == set(SCORED)


def test_the_best_frames_wherever_they_lie() -> None:
    places = build("top", scorer=lambda frames, _: torch.tensor([0.1, 0.9, 0.9, 0.2, 0.8])).select(noise(5), "?", 3)
    assert places.tolist() == [1, 2, 4]
    assert build("uniform").select(noise(10), "?", 5).tolist() == [1, 3, 5, 7, 9]


@pytest.mark.parametrize("seed", range(12))
def test_aks_against_the_literal_rule(seed: int) -> None:
    rng = np.random.default_rng(seed)
    count, budget, depth = int(rng.integers(20, 200)), int(rng.integers(1, 20)), int(rng.integers(0, 6))
    scores = rng.random(count).round(2)
    scores[rng.integers(count) :][:5] += 2
    threshold = float(rng.choice([0.1, 0.5, 0.8]))
    found = make("aks", threshold=threshold, depth=depth).choose(scores, budget)
    assert sorted(found) == aks(scores.tolist(), budget, threshold, depth)


def test_aks_keeps_the_scene_that_stands_out_and_spreads_otherwise() -> None:
    scores = np.full(64, 0.1)
    scores[40:48] = 0.9
    assert sorted(make("aks", threshold=0.5).choose(scores, 8)) == list(range(40, 48))
    spread = sorted(make("aks").choose(np.random.default_rng(0).random(64), 8))
    assert [place // 8 for place in spread] == list(range(8))


def test_aks_released_says_what_to_set_where_it_keeps_nothing() -> None:
    selector = build("aks", variant="released", depth=7, scorer=lambda frames, _: torch.arange(len(frames)) % 2)
    with pytest.raises(
        ValueError, match=r"keeps no frame of a budget of 4 after 7 splits\. Set depth to at most 2, or"
    ):
        selector.select(noise(64), QUESTION, 4)
    lower = build("aks", variant="released", depth=2, scorer=lambda frames, _: torch.arange(len(frames)) % 2)
    assert 0 < len(lower.select(noise(64), QUESTION, 4)) <= 4


@pytest.mark.parametrize(
    ("name", "settings", "said"),
    [
        ("aks", {}, "needs the setting scorer"),
        ("aks", {"scorer": {"modle": "x"}}, "'model'"),
        ("aks", {"scorer": imagetext.redness, "variant": "paper"}, "allowed are 'fixed', 'released'"),
        ("aks", {"scorer": imagetext.redness, "depth": -1}, "give 0 or more"),
        ("top", {"scorer": imagetext.redness, "fps": 0.0}, "more than 0 frames per second"),
        ("top", {"scorer": {"model": str(Path("no") / "such" / "model")}}, "no checkpoint directory"),
        ("best", {}, "There is: aks, top, uniform"),
    ],
)
def test_bad_settings_say_what_is_allowed(name: str, settings: dict, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        build(name, **settings)


@pytest.mark.parametrize("scores", [torch.ones(3), torch.full((40,), torch.nan)], ids=["too few", "nan"])
def test_scores_that_are_none(scores: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="40 finite ones are needed"):
        build("top", scorer=lambda *_: scores).select(noise(40), QUESTION, 4)


# ---- image-text models


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_scores_are_those_of_the_stock_model(kind: str, tmp_path: Path) -> None:
    folder = imagetext.folder(tmp_path, kind)
    frames = noise(70)  # more than are embedded at once
    scores = ImageTextScorer(str(folder))(frames, QUESTION)
    model = AutoModel.from_pretrained(folder)
    images = AutoImageProcessor.from_pretrained(folder)(images=list(frames.pixels), return_tensors="pt")
    text = AutoTokenizer.from_pretrained(folder)([QUESTION], padding="max_length", max_length=12, return_tensors="pt")
    with torch.no_grad():
        found = model(**images, **text)
    expected = torch.cosine_similarity(found.image_embeds, found.text_embeds)
    torch.testing.assert_close(scores, expected, atol=1e-6, rtol=0)
    other = ImageTextScorer(str(folder))(frames, "which shape is red ?")
    assert (other - scores).abs().max() > 1e-3 and scores.std() > 1e-4


def test_a_long_question_is_cut_off_and_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    scorer = ImageTextScorer(str(imagetext.folder(tmp_path)))
    long = "what is in the video " * 4
    with caplog.at_level(logging.WARNING, "langdc"):
        first, again = scorer(noise(4), long), scorer(noise(4), long + "at the end")
    assert torch.equal(first, again)
    assert [record.message.count("reads 12 tokens") for record in caplog.records] == [1]


def test_entries_share_a_model_and_folders_do_not(tmp_path: Path) -> None:
    folders = [imagetext.folder(tmp_path / str(seed), seed=seed) for seed in (0, 1)]
    one, again, other = (ImageTextScorer(str(folder)) for folder in (folders[0], folders[0], folders[1]))
    assert one.model is again.model
    assert not torch.equal(one(noise(3), QUESTION), other(noise(3), QUESTION))


def test_other_models_are_refused() -> None:
    with pytest.raises(ValueError, match="'qwen2_5_vl' model, which embeds no texts beside images"):
        ImageTextScorer(stock.folder("qwen2_5_vl"))
