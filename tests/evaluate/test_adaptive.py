"""Adaptive budgets: correlations, bins and cases are of the segments they should be of."""

import base64
import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.stats import spearmanr

from langdc.evaluate import tasks
from langdc.evaluate.adaptive import BINS, LEVELS, PICTURE, SHOWN, Adaptive, Pictures
from langdc.evaluate.comparison import read_results
from langdc.evaluate.folder import EvalFolder
from langdc.evaluate.loop import evaluate
from langdc.evaluate.page import page
from langdc.evaluate.results import Result
from tests.evaluate import made_up, runs


def _row(*videos: dict) -> Result:
    lines = [{"type": "video", "key": f"video/v{n}", "video": f"v{n}", **video} for n, video in enumerate(videos)]
    return Result("made", {}, {}, lines)


def _random(videos: int = 30, seed: int = 0) -> list[dict]:
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(videos):
        motion = rng.gamma(2, 3, 4)
        found.append({
            "segment_tokens": (3 * motion + rng.normal(0, 4, 4)).round().clip(0).astype(int).tolist(),
            "densities": [], "motion": motion.tolist(), "edges": rng.uniform(0, 5, 4).tolist(),
        })  # fmt: skip
    return found


def test_without_densities_motion_and_edges_stand_in():
    videos = _random()
    found = Adaptive.of(_row(*videos))
    assert found is not None and [measure.name for measure in found.measures] == ["motion", "edge entropy"]
    tokens = [count for video in videos for count in video["segment_tokens"]]
    for measure, name in zip(found.measures, ("motion", "edges"), strict=True):
        values = [value for video in videos for value in video[name]]
        assert measure.rho.value == pytest.approx(spearmanr(values, tokens).statistic)
        assert measure.rho.low < measure.rho.value < measure.rho.high and measure.rho.clusters == 30
        assert len(measure.bins) == BINS and sum(tokens.n for _, tokens in measure.bins) == 120
        assert [richness for richness, _ in measure.bins] == sorted(richness for richness, _ in measure.bins)


def test_few_levels_are_bins_of_their_own():
    videos = [{"segment_tokens": [4 * d, 4 * d + n % 2], "densities": [d, d]} for n, d in enumerate((0, 1, 1, 3))]
    found = Adaptive.of(_row(*videos))
    assert found is not None
    (measure,) = found.measures
    assert [(richness, tokens.value, tokens.n) for richness, tokens in measure.bins] == [
        (0.0, 0.0, 2), (1.0, 4.25, 4), (3.0, 12.5, 2),
    ]  # fmt: skip
    assert len(measure.bins) <= LEVELS


def test_rows_that_do_not_adapt_have_no_part_in_it():
    still = {"segment_tokens": [8, 8, 8, 8], "densities": [0, 1, 2, 3]}
    assert Adaptive.of(_row(still, still)) is None
    unknown = {"segment_tokens": [8, 9], "densities": []}
    assert Adaptive.of(_row(unknown, unknown)) is None


def test_cases_are_those_whose_ranks_lie_nearest_and_farthest():
    steady = [{"segment_tokens": [2 * n + 1, 2 * n + 2], "densities": [2 * n + 1, 2 * n + 2]} for n in range(12)]
    odd = {"segment_tokens": [90, 0], "densities": [0, 80], "captions": ["much", ""], "targets": ["", "very much"]}
    found = Adaptive.of(_row(*steady, odd))
    assert found is not None
    worst, best = found.cases(worst=True), found.cases(worst=False)
    assert len(worst) == len(best) == SHOWN
    assert len({case.video for case in worst}) == len({case.video for case in best}) == SHOWN
    first = worst[0]
    assert (first.video, first.segment, first.tokens, first.richness) == ("v12", 0, 90, {"density": 0})
    assert (first.caption, first.target) == ("much", "")
    assert first.gap == pytest.approx(25 / 26)  # the highest rank of 26 for the lowest
    assert "v12" not in {case.video for case in best} and max(abs(case.gap) for case in best) <= 1 / 26


def test_pictures_show_the_middle_of_the_segment(prepared: Path, finished: Path):
    rows = read_results([finished])
    found = next(one for row in rows if (one := Adaptive.of(row)) is not None)
    case = found.cases(worst=True)[0]
    pictures = Pictures(EvalFolder.read(finished).header)
    uri = pictures.of(case)
    assert uri is not None and uri.startswith("data:image/jpeg;base64,")
    with Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))) as picture:
        assert PICTURE // 2 < max(picture.size) <= PICTURE
    text = page(rows, lambda row: pictures)
    assert uri in text and "<h2>Adaptive budgets</h2>" in text and not pictures.missing
    assert "data:image" not in page(rows)


def test_pictures_that_are_gone_are_said(tmp_path: Path):
    run = made_up.write(tmp_path / "run", {"learned": {"right": 36, "tokens": lambda d: 4 * d, "captions": True}})
    header = EvalFolder.read(run).header
    header["config"]["task"] = {"name": "sample", "data": str(tmp_path / "gone.jsonl")}
    text = page(read_results([run]), lambda row: Pictures(header))
    assert "Not all frames could be read: There is no record file" in text and "<img" not in text


def test_records_that_say_nothing_of_density_get_motion_and_edges(prepared: Path, tmp_path: Path):
    records = (prepared / "data" / "test.jsonl").read_text().splitlines()
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "videos").symlink_to(prepared / "data" / "videos")
    bare = [{**json.loads(line), "segments": []} for line in records]
    (tmp_path / "data" / "test.jsonl").write_text("".join(json.dumps(record) + "\n" for record in bare))
    task = {"name": "sample", "data": str(tmp_path / "data" / "test.jsonl")}
    config = runs.config(prepared, output=str(tmp_path / "eval"), task=task)
    config = config.model_copy(update={"entries": config.entries[:1], "reference": None})
    folder = evaluate(config, tasks.build(config.task.name, **config.task.settings))
    (video, *_) = [line for line in folder.lines("langdc") if line["type"] == "video"]
    assert len(video["motion"]) == len(video["edges"]) == len(video["segment_tokens"]) == 4
    assert any(video["motion"]) and all(0 < value < 5 for value in video["edges"])
