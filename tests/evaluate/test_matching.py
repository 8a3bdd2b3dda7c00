"""Rows at equal budget: what is measured, that it is set on other videos, and what is said where it fails."""

import json
import shutil
from pathlib import Path

import pytest

from langdc import jsonl
from langdc.backbones.inputs import read_prompt
from langdc.data.records import QuestionRecord, Record, write_records
from langdc.evaluate import tasks
from langdc.evaluate.folder import EvalFolder
from langdc.evaluate.loop import evaluate
from langdc.evaluate.matching import _search, calibration_videos, compared, with_parts
from langdc.evaluate.settings import EntryConfig, EvalConfig
from langdc.pipeline import VideoLM
from tests import stock
from tests.evaluate import runs


def _task(config: EvalConfig):
    return tasks.build(config.task.name, **config.task.settings)


def _rows(prepared: Path, *more: dict) -> list[dict]:
    pool = str(prepared / "pool")
    matched = {"name": "few", "model": pool, "compressor": {"name": "vidcom2", "tokens": 40}}
    return [matched, *({"model": pool, "match": "few", **row} for row in more)]


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Videos that are not the task's."""
    return runs.write_data(tmp_path_factory.mktemp("others"), videos=4, seed=6)


def _config(prepared: Path, others: Path, out: Path, *more: dict, **changes) -> EvalConfig:
    settings = {"output": str(out), "reference": None, "timing_videos": 0, "calibration": {"data": str(others)}}
    return runs.config(prepared, entries=_rows(prepared, *more), **{**settings, **changes})


@pytest.fixture(scope="module")
def matched(prepared: Path, others: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished evaluation of a row and five that should cost as much, never written to."""
    out = tmp_path_factory.mktemp("matched") / "eval"
    more = [
        {"name": "random", "compressor": {"name": "random"}},
        {"name": "frames", "compressor": {"name": "uniform"}},
        {"name": "snapkv", "kv": {"name": "snapkv"}, "limit": 2},
        {"name": "both", "compressor": {"name": "uniform", "keep": 0.5}, "kv": {"name": "pivotkv"}, "limit": 1},
        {"name": "control", "control": "random_tokens"},
        {"name": "most", "compressor": {"name": "vidcom2", "keep": 0.6}, "match": None},
        {"name": "fastv", "layers": {"name": "fastv"}, "match": "most", "limit": 2},
    ]
    config = _config(prepared, others, out, *more)
    return evaluate(config, _task(config)).directory


def _load(model: Path) -> VideoLM:
    return VideoLM.from_pretrained(model)


def _line(folder: Path, row: str, key: str) -> dict:
    return next(line for line in jsonl.read(folder / "results" / row / "0.jsonl") if line["key"] == key)


def _answers(folder: Path, row: str) -> dict[str, dict]:
    return {line["key"]: line for line in jsonl.read(folder / "results" / row / "0.jsonl") if line["type"] == "answer"}


def test_tokens_are_matched_as_they_were_read(matched: Path):
    few = [line["tokens"] for line in _answers(matched, "few").values()]
    random = [line["tokens"] for line in _answers(matched, "random").values()]
    assert set(few) == {40} and set(random) == {40}
    assert _line(matched, "random", "calibration")["tokens"] == 40
    budget = _line(matched, "random", "budget")
    assert (budget["match"], budget["measure"], budget["ratio"], budget["equal"]) == ("few", "tokens", 1.0, True)
    assert _line(matched, "control", "budget")["equal"]


def test_whole_frames_that_do_not_fit_are_told(matched: Path):
    """A frame has 9 + 4 tokens, so 40 cannot be had from whole frames: 39 is nearest, 2.5 % less."""
    budget = _line(matched, "frames", "budget")
    assert budget["ratio"] == pytest.approx(39 / 40) and not budget["equal"]


@pytest.mark.parametrize(("row", "videos"), [("snapkv", 2), ("both", 1)])
def test_bytes_in_the_cache_are_matched_on_the_common_videos(matched: Path, row: str, videos: int):
    own, other = _answers(matched, row), _answers(matched, "few")
    assert len({line["video"] for line in own.values()}) == videos < 3
    assert set(own) < set(other)
    mean = sum(line["kv_bytes"] for line in own.values()) / len(own)
    wanted = sum(other[key]["kv_bytes"] for key in own) / len(own)
    budget = _line(matched, row, "budget")
    assert budget["measure"] == "kv_bytes" and budget["ratio"] == pytest.approx(mean / wanted)
    assert budget["equal"] and abs(mean / wanted - 1) <= 0.02
    read = {line["tokens"] for line in own.values()}
    assert read == {16 * 13 if row == "snapkv" else 8 * 13}  # all of the pool's tokens, or those of every other frame


def test_bytes_of_rows_dropped_between_layers_are_matched(matched: Path):
    own, other = _answers(matched, "fastv"), _answers(matched, "most")
    budget = _line(matched, "fastv", "budget")
    assert budget["measure"] == "kv_bytes" and budget["equal"] and len(own) == 2 * len(other) // 3
    assert {line["tokens"] for line in own.values()} == {16 * 13}  # all are read by the first layer


def test_a_cost_below_that_of_the_layers_that_read_all_is_told(prepared: Path, others: Path, tmp_path: Path):
    config = _config(prepared, others, tmp_path / "eval", {"name": "fastv", "layers": {"name": "fastv"}})
    what = r"Entry 'fastv' cannot be given the budget of 'few': .* lets 1 of 3 layers .* keep=0.1923 cannot be met"
    with pytest.raises(ValueError, match=what):
        evaluate(config, _task(config))


def test_a_method_that_frees_no_keys_cannot_be_matched_by_bytes(prepared: Path, others: Path, tmp_path: Path):
    config = _config(prepared, others, tmp_path / "eval", {"name": "later", "kv": {"name": "dycoke_decoding"}})
    with pytest.raises(
        ValueError, match=r"'later' .* of '.*': dycoke_decoding frees no keys .* Leave out match and give it keep"
    ):
        evaluate(config, _task(config))


@pytest.mark.parametrize(
    ("parts", "what"),
    [
        ({"layers": {"name": "fastv", "keep": 0.1}}, "FastV lets 1 of 3 layers .* Set keep to more than 0.334"),
        ({"layers": {"name": "fastv", "tokens": 9, "layer": 3}}, r"Rows .* \[3\]; give ascending ones of 1 to 2"),
        ({"kv": {"name": "dycoke_decoding", "keep": 0.2}}, "1 of 3 layers read all .* Set keep to more than 0.334"),
        ({"layers": {"name": "fastv", "keep": 0.5}, "kv": {"name": "pivotkv", "keep": 0.5}}, "PivotKV moves keys"),
    ],
)
def test_what_no_question_could_be_asked_with_is_said_before_the_first(prepared: Path, tmp_path: Path, parts, what):
    pool = str(prepared / "pool")
    half = {"name": "half", "model": pool, "layers": {"name": "pyramiddrop", "keep": 0.6}}
    entries = [half, {"name": "few", "model": pool, **parts}]
    config = runs.config(prepared, entries=entries, reference=None, output=str(tmp_path / "eval"), timing_videos=0)
    with pytest.raises(ValueError, match="Entry 'few': " + what):
        evaluate(config, _task(config))
    assert not (tmp_path / "eval").exists()


def test_a_fraction_fits_videos_larger_than_those_it_was_set_on(tmp_path: Path):
    """Four times as many tokens, of which the first layers read all."""
    for name, count in (("large", 16), ("small", 4)):
        (folder := tmp_path / name).mkdir()
        stock.mp4(folder, count=count, fps=4)
        asked = [QuestionRecord(kind="count", question="what moves ?", answer="1")]
        write_records(folder / "test.jsonl", [Record(id=name, video="clip.mp4", questions=asked)])
    model = {"model": str(stock.folder("qwen2_5_vl")), "backbone": {"name": "qwen2_5_vl", "frames": 16}}
    kept = {"name": "most", **model, "layers": {"name": "pyramiddrop", "keep": 0.75}}
    fewer = {"name": "fastv", **model, "layers": {"name": "fastv"}, "match": "most"}
    task = {"name": "records", "data": str(tmp_path / "large" / "test.jsonl")}
    settings = {"task": task, "reference": None, "calibration": {"data": str(tmp_path / "small" / "test.jsonl")}}
    config = runs.config(tmp_path, entries=[kept, fewer], timing_videos=0, **settings)
    folder = evaluate(config, _task(config)).directory
    assert _line(folder, "fastv", "calibration")["keep"] == pytest.approx(0.75, abs=0.05)
    assert not any(line["failed"] for line in _answers(folder, "fastv").values())
    assert _line(folder, "fastv", "budget")["equal"]


def test_bytes_are_those_that_a_cache_holds(prepared: Path):
    lm = VideoLM.from_pretrained(prepared / "pool")
    video = lm.open(prepared / "data" / "videos" / "v0.mp4")
    together = lm.answer([(video, "what moves ?"), (video, "how many objects are there ?")], max_new_tokens=1)
    for question, answer in zip(["what moves ?", "how many objects are there ?"], together, strict=True):
        prompt = lm.prompt(question, video)
        cache = read_prompt(lm.model.backbone, prompt, [video.tokens], None, [16]).cache
        assert (
            answer.kv_bytes
            == cache.held_bytes
            == sum(states.untyped_storage().nbytes() for layer in cache.layers for states in (layer.keys, layer.values))
        )
        assert answer.kv_text_bytes * (answer.tokens + len(prompt.ids)) == answer.kv_bytes * len(prompt.ids)


def test_dropped_keys_are_not_counted(prepared: Path):
    row = EntryConfig.model_validate({"name": "kv", "model": "m", "kv": {"name": "snapkv"}, "match": "other"})
    lm = VideoLM.from_pretrained(prepared / "pool")
    video = lm.open(prepared / "data" / "videos" / "v0.mp4")
    thinned = with_parts(lm, row, {"tokens": 30}).open("", same=video).ask("what moves ?", max_new_tokens=1)
    whole = video.ask("what moves ?", max_new_tokens=1)
    held, read = thinned.keys_per_layer, len(lm.prompt("what moves ?", video).ids) + 16 * 13
    assert held is not None and max(held) < 60 < read
    assert thinned.kv_bytes / whole.kv_bytes == pytest.approx(sum(held) / len(held) / read)
    assert thinned.kv_text_bytes == whole.kv_text_bytes


def test_the_part_inside_the_model_has_the_budget(prepared: Path):
    """The compressor before it keeps its own."""
    parts = {"compressor": {"name": "holitom_outer", "keep": 0.5}, "layers": {"name": "holitom_inner", "layer": 1}}
    row = EntryConfig.model_validate({"name": "both", "model": "m", "match": "other", **parts})
    lm = VideoLM.from_pretrained(prepared / "pool")
    video = with_parts(lm, row, {"tokens": 30}).open(prepared / "data" / "videos" / "v0.mp4")
    answer, text = video.ask("what moves ?", max_new_tokens=1), len(lm.prompt("what moves ?", video).ids)
    assert 30 < answer.tokens <= 16 * 13 // 2 and answer.keys_per_layer[0] == text + answer.tokens
    assert text + 29 < sum(answer.keys_per_layer) / 3 <= text + 30


def test_a_compressor_with_weights_of_its_own_is_refused(prepared: Path):
    row = EntryConfig.model_validate({"name": "r", "model": "m", "compressor": {"name": "resampler", "queries": 2}})
    with pytest.raises(ValueError, match=r"'resampler' has weights of its own.* would be random"):
        with_parts(VideoLM.from_pretrained(prepared / "pool"), row, {})


def test_a_budget_is_set_on_other_videos_only(prepared: Path, others: Path, tmp_path: Path):
    decoded: list[Path] = []
    out = tmp_path / "eval"

    class Lm(VideoLM):
        def open(self, path, *args, same=None, **options):
            decoded.extend([] if same is not None else [Path(path)])
            return super().open(path, *args, same=same, **options)

    config = _config(prepared, others, out, {"name": "fastvid", "compressor": {"name": "fastvid"}})
    evaluate(config, _task(config), load=lambda one: (Lm.from_pretrained if one.calibrated else _load)(one.model))
    assert decoded == [others.parent / "videos" / f"v{number}.mp4" for number in range(4)]
    lines = jsonl.read(out / "results" / "fastvid" / "0.jsonl")
    assert [line["type"] for line in lines[:2]] == ["calibration", "model"]  # found before a question was asked
    assert lines[0]["videos"] == 4 and lines[0]["target"] == 40


def test_a_run_cut_off_keeps_the_budget_it_found(prepared: Path, others: Path, matched: Path, tmp_path: Path):
    copied = Path(shutil.copytree(matched, tmp_path / "eval"))
    path = copied / "results" / "random" / "0.jsonl"
    whole = path.read_text().splitlines(keepends=True)
    lines = [json.loads(line) for line in whole]
    found = next(i for i, line in enumerate(lines) if line["type"] == "calibration")
    lines[found]["tokens"] = 26  # so that a second search would show
    path.write_text("".join(json.dumps(line) + "\n" for line in lines[: found + 1]))
    header = json.loads((copied / "header.json").read_text())
    config = EvalConfig.model_validate({**header["config"], "output": str(copied)})
    evaluate(config, _task(config))
    assert {line["tokens"] for line in _answers(copied, "random").values()} == {26}
    assert _line(copied, "random", "budget")["ratio"] == 26 / 40
    assert len(jsonl.read(path)) == len(lines)
    assert EvalFolder.read(copied).header["calibration_sha256"]


def test_other_calibration_data_is_another_run(prepared: Path, others: Path, matched: Path, tmp_path: Path):
    copied = Path(shutil.copytree(matched, tmp_path / "eval"))
    changed = Path(shutil.copytree(others.parent, tmp_path / "data")) / others.name
    lines = changed.read_text().splitlines()
    changed.write_text("\n".join(lines[:3]) + "\n")
    header = json.loads((copied / "header.json").read_text())
    tree = {**header["config"], "output": str(copied), "calibration": {"data": str(changed)}}
    config = EvalConfig.model_validate(tree)
    with pytest.raises(ValueError, match=r"(?s)evaluation of something else.*calibration_sha256"):
        evaluate(config, _task(config))


def test_data_to_set_budgets_on_must_be_there_and_be_other(prepared: Path, others: Path, tmp_path: Path):
    row = {"name": "random", "compressor": {"name": "random"}}
    config = _config(prepared, tmp_path / "none.jsonl", tmp_path / "eval", row)
    with pytest.raises(ValueError, match=r"calibration\.data: there is no record file .*none\.jsonl"):
        evaluate(config, _task(config))
    config = _config(prepared, prepared / "data" / "test.jsonl", tmp_path / "eval", row)
    with pytest.raises(ValueError, match=r"shares the video .*v0\.mp4 with the task"):
        evaluate(config, _task(config))
    assert not (tmp_path / "eval").exists()
    config = _config(prepared, others, tmp_path / "eval", row, calibration={"data": str(others), "videos": 2})
    assert [record.id for record, _ in calibration_videos(config, _task(config))] == ["v0", "v1"]


def test_a_model_that_leaves_nothing_to_choose_says_so(prepared: Path, others: Path, tmp_path: Path):
    row = {"name": "wrong", "model": str(prepared / "langdc"), "compressor": {"name": "random"}}
    config = _config(prepared, others, tmp_path / "eval", row, limit=1)
    with pytest.raises(ValueError, match=r"Entry 'wrong': Random chooses .* those of LangDC.*trained with 'pool'"):
        evaluate(config, _task(config))


@pytest.mark.parametrize(
    ("target", "kept", "most", "best"),
    [
        (33, lambda n: n, 500, 33),
        (33, lambda n: 0.7 * n, 500, 47),
        (33, lambda n: 16 * max(1, n // 16), 500, 32),  # whole frames; any of 32 to 47 would do
        (33, lambda n: min(n, 20), 500, 20),  # never reaches the target
        (33, lambda n: 40.0, 500, 1),  # does not listen
        (1.2, lambda n: n, 500, 1),
        (400, lambda n: n, 300, 300),
    ],
)
def test_the_search_finds_the_nearest(target, kept, most, best):
    asked: list[int] = []

    def quantity(number: int) -> float:
        assert number not in asked, "asked twice"
        asked.append(number)
        return kept(number)

    nearest, tried = _search(target, most, quantity)
    wanted = min(abs(kept(n) - target) for n in range(1, most + 1))
    assert abs(kept(nearest) - target) == wanted == abs(kept(best) - target)
    assert list(tried) == asked and len(tried) <= 12


def test_budgets_are_compared_on_what_both_were_asked():
    found = compared({"a": 10, "b": 20, "c": 99}, {"a": 10, "b": 20.4, "d": 1})
    assert found["measured"] == 15 and found["target"] == pytest.approx(15.2) and found["equal"]
    assert not compared({"a": 10.3}, {"a": 10})["equal"]
    assert compared({"a": 1}, {"b": 1}) == {"measured": None, "target": None, "ratio": None, "equal": False}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"compressor": {"name": "random", "keep": 0.5}}, "match sets the budget, so leave out keep"),
        ({"kv": {"name": "snapkv", "tokens": 9}}, "match sets the budget, so leave out tokens"),
        ({"kv": {"name": "snapkv"}, "control": "random_tokens"}, "takes no layers, kv or frames"),
        ({"layers": {"name": "fastv"}, "control": "random_tokens"}, "takes no layers, kv or frames"),
        ({"layers": {"name": "fastv", "keep": 0.5}}, "match sets the budget, so leave out keep"),
        ({}, "match belongs to a compressor, layers, a kv, or a control"),
        ({"control": "caption_text"}, "match belongs to a compressor, layers, a kv, or a control"),
    ],
)
def test_rows_that_cannot_be_matched_are_refused(prepared: Path, others: Path, tmp_path: Path, row, message):
    with pytest.raises(ValueError, match=message):
        _config(prepared, others, tmp_path, {"name": "other", **row})


@pytest.mark.parametrize(
    "inside", [{"layers": {"name": "fastv", "keep": 0.5}}, {"kv": {"name": "snapkv", "keep": 0.5}}]
)
@pytest.mark.parametrize("other", [{"compressor": {"name": "random"}}, {"control": "random_tokens"}])
def test_tokens_read_cannot_match_bytes_of_the_cache(prepared: Path, others: Path, tmp_path: Path, inside, other):
    """All tokens are read there, so that everything would be kept."""
    rows = [{"name": "inside", "model": "m", **inside}, {"name": "other", "model": "m", "match": "inside", **other}]
    settings = {"reference": None, "output": str(tmp_path), "calibration": {"data": str(others)}}
    with pytest.raises(ValueError, match="which reads all tokens and saves bytes of the cache"):
        runs.config(prepared, entries=rows, **settings)


def test_a_match_needs_videos_to_set_it_on(prepared: Path, tmp_path: Path):
    rows = _rows(prepared, {"name": "random", "compressor": {"name": "random"}})
    with pytest.raises(ValueError, match=r"say on which other videos to set it, such as calibration: \{data"):
        runs.config(prepared, entries=rows, reference=None, output=str(tmp_path))
