"""The real lmms-eval command with our model: results, logged samples, cache."""

import json
import sqlite3
import subprocess
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pytest

from langdc.pipeline import VideoLM

Run = Callable[..., subprocess.CompletedProcess[str]]
DAMAGED = "damaged.mp4"
MODEL = "sample:vlm"
SHIPPED = f"pretrained={MODEL}"
QUARTER = f"{SHIPPED},compressor=vidcom2,keep=0.25"
HALF = f"{SHIPPED},compressor=vidcom2,keep=0.5"


@dataclass(frozen=True)
class Finished:
    """What one run left."""

    said: str
    results: dict
    samples: list[dict]
    keys: set[str]
    """Keys of the cache once it was through."""
    asked: int
    """How many requests came to the model."""


@pytest.fixture(scope="module")
def finished(folder: Path, run: Run) -> dict[str, Finished]:
    """Four runs into one cache: the shipped model, a compressor with two budgets, and the first of those again."""
    found, before = {}, 0
    for name, model_args in (("shipped", SHIPPED), ("quarter", QUARTER), ("half", HALF), ("again", QUARTER)):
        done = run(model_args, name)
        said = done.stdout + done.stderr
        assert done.returncode == 0, said[-5000:]
        (results,) = (folder / name).rglob("*_results.json")
        (samples,) = (folder / name).rglob("*_samples_langdc_shapes.jsonl")
        lines = [json.loads(line) for line in samples.read_text().splitlines()]
        lines.sort(key=lambda line: line["doc_id"])
        logged = len((folder / "cache/cache.audit.jsonl").read_text().splitlines())
        found[name] = Finished(said, json.loads(results.read_text()), lines, cached(folder), logged - before)
        before = logged
    return found


def cached(folder: Path) -> set[str]:
    with closing(sqlite3.connect(folder / "cache/cache.db")) as database:  # open, it would keep the next run out
        return {key for (key,) in database.execute("SELECT cache_key FROM responses")}


def documents(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "test.jsonl").read_text().splitlines()]


def replies(one: Finished) -> list[str]:
    return [line["filtered_resps"] for line in one.samples]


@pytest.mark.parametrize(("name", "compressor"), [("shipped", None), ("quarter", {"name": "vidcom2", "keep": 0.25})])
def test_replies_are_those_of_the_library(finished, folder: Path, name: str, compressor: dict | None):
    lm = VideoLM.from_pretrained(MODEL, compressor)
    asked = [row for row in documents(folder) if len(row["shown"]) < 2 and row["shown"] != [DAMAGED]]
    paths = [folder / row["shown"][0] if row["shown"] else None for row in asked]
    expected = [lm.ask(p, row["question"], max_new_tokens=6).text for p, row in zip(paths, asked, strict=True)]
    given = [r for r, row in zip(replies(finished[name]), documents(folder), strict=True) if row in asked]
    assert given == expected


def test_results_are_the_mean_of_the_samples_and_the_shipped_model_knows_most(finished, folder: Path):
    one = finished["shipped"]
    rows = documents(folder)
    right = [reply.lower() == row["answer"] for reply, row in zip(replies(one), rows, strict=True)]
    assert one.results["results"]["langdc_shapes"]["right,none"] == pytest.approx(sum(right) / len(right))
    about_one_video = [r for r, row in zip(right, rows, strict=True) if row["shown"] in (["a.mp4"], ["b.mp4"])]
    assert sum(about_one_video) > len(about_one_video) / 2


def test_settings_are_in_the_results(finished):
    assert finished["half"].results["config"]["model_args"] == HALF


def test_another_budget_has_other_keys_and_other_replies(finished, folder: Path):
    answered = len(documents(folder)) - 1
    quarter = finished["quarter"].keys - finished["shipped"].keys
    half = finished["half"].keys - finished["quarter"].keys
    assert len(finished["shipped"].keys) == len(quarter) == len(half) == answered
    assert replies(finished["quarter"]) != replies(finished["half"])


def test_the_same_budget_is_answered_from_the_cache(finished, folder: Path):
    assert finished["again"].keys == finished["half"].keys
    assert replies(finished["again"]) == replies(finished["quarter"])
    assert finished["again"].asked == 1, "only the damaged video, which has no reply to keep"
    assert finished["quarter"].asked == finished["half"].asked == len(documents(folder))


def test_a_damaged_video_has_an_empty_reply_that_counts_as_wrong(finished):
    line = finished["shipped"].samples[-1]
    assert line["filtered_resps"] == "" and line["right"] == 0
    assert DAMAGED in finished["shipped"].said
    assert f"1 of {len(finished['shipped'].samples)} requests have no reply" in finished["shipped"].said


def test_scores_of_continuations_are_not_offered(run: Run):
    done = run(SHIPPED, "wrong", "langdc_chances")
    assert done.returncode != 0
    assert "answers tasks with output_type generate_until; this one has loglikelihood" in done.stderr
