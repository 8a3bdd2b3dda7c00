"""What people get wrong, through the commands they type: an error of one screen that helps, or a sensible answer.

The commands run in this process; `tests/train/test_deepspeed.py` starts them as processes.
"""

import importlib.util
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import av
import numpy as np
import pytest
import yaml

from langdc import checkpoint, cli, jsonl
from langdc.pipeline import VideoLM
from langdc.video import write_video
from tests import tiny
from tests.evaluate import runs

ROOT = Path(__file__).resolve().parent.parent
QUESTION = "what shape is the red object ?"
Records = list[dict]


def application(path: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.replace("/", "_"), ROOT / f"{path}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


STAGE2, STAGE3, EVALUATE = map(application, ("train/stage2", "train/stage3", "eval/run"))


@pytest.fixture(scope="module")
def there(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight records with real videos, and a tiny model of each compressor; never written to."""
    folder = tmp_path_factory.mktemp("there")
    runs.write_data(folder / "data", videos=8)
    for name in tiny.COMPRESSORS:
        runs.save_model(folder / name, name)
    return folder


@pytest.fixture
def place(there: Path, tmp_path: Path) -> Path:
    """The records and videos once more, to be spoilt, beside links to the models."""
    shutil.copytree(there / "data" / "videos", tmp_path / "data" / "videos")
    shutil.copy(there / "data" / "test.jsonl", tmp_path / "data" / "records.jsonl")
    for name in tiny.COMPRESSORS:
        (tmp_path / name).symlink_to(there / name)
    return tmp_path


def spoil(place: Path, change: Callable[[Records], object]) -> None:
    file = place / "data" / "records.jsonl"
    records = [json.loads(line) for line in file.read_text().splitlines()]
    change(records)
    file.write_text("".join((one if isinstance(one, str) else json.dumps(one)) + "\n" for one in records))


def run_tree(place: Path, stage: str = "stage2") -> dict:
    """Two steps of the captioner (stage 2) or of the post-projector (stage 3), as a config file says it."""
    objective, trained = {"stage2": ("compress", "projectors"), "stage3": ("answer", "post_projector")}[stage]
    train = {"data": [str(place / "data" / "records.jsonl")], "steps": 2, "batch_size": 4}
    return {
        "objective": objective,
        "model": tiny.config("langdc", segment_marker=True).model_dump(mode="json"),
        "output": str(place / "run"),
        "log_steps": 1,
        "train": {**train, "trainable": [f"compressor.{trained}.*"]},
    }


def evaluation_tree(place: Path) -> dict:
    tree = runs.config(place, reference=None).model_dump(mode="json")
    task = {"name": "sample", "data": str(place / "data" / "records.jsonl")}
    return {**tree, "task": task, "entries": tree["entries"][:1], "timing_videos": 0, "max_new_tokens": 2}


def lines_of(place: Path) -> list[dict]:
    """What the evaluation wrote about its one entry."""
    (file,) = (place / "eval" / "results").glob("*/*.jsonl")
    return jsonl.read(file)


def typed(main: Callable[[list[str]], int], place: Path, tree: dict, *more: str) -> int:
    """Run an application with a config file."""
    (place / "config.yaml").write_text(yaml.safe_dump(tree))
    return main(["--config", str(place / "config.yaml"), *more])


def train(place: Path, *more: str, stage: str = "stage2") -> int:
    return typed({"stage2": STAGE2, "stage3": STAGE3}[stage].main, place, run_tree(place, stage), *more)


def ask(*words: object, model: object) -> int:
    return cli.main(["ask", *map(str, words), "--model", str(model), "--max-new-tokens", "2"])


def assert_helps(code: int, capsys: pytest.CaptureFixture[str], *said: str) -> None:
    """A message that starts with "error:", fits a screen, shows no code, and says what is wanted of it."""
    error = capsys.readouterr().err
    message = error[error.index("error: ") :]
    assert code == 2
    assert "Traceback" not in error and "File " not in error
    assert sum(1 + len(line) // 100 for line in message.splitlines()) <= 20, message
    for words in said:
        assert words in message, message


# --- training and evaluation ------------------------------------------------------------------------------------------


def _cut_short(file: Path, source: Path) -> None:
    good = source.read_bytes()
    file.write_bytes(good[: len(good) // 2])


def _only_sound(file: Path) -> None:
    with av.open(str(file), "w") as container:
        stream = container.add_stream("aac", rate=16000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 16000), np.float32), format="fltp", layout="mono")
        frame.rate = 16000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())


@pytest.mark.parametrize("stage", ["stage2", "stage3"])
def test_a_missing_video(place: Path, capsys: pytest.CaptureFixture[str], stage: str):
    spoil(place, lambda records: records[3].update(video="videos/gone.mp4"))
    assert_helps(train(place, stage=stage), capsys, "records.jsonl", "line 4 (id 'v3')", "videos/gone.mp4", "Fetch")


def test_a_video_that_cannot_be_read(place: Path, capsys: pytest.CaptureFixture[str]):
    _cut_short(place / "data" / "cut.mp4", place / "data" / "videos" / "v3.mp4")
    spoil(place, lambda records: records[3].update(video="cut.mp4"))
    assert_helps(train(place), capsys, "data/cut.mp4: cannot be read as a video", "fetch it again")


BAD_LINES = {
    "json": ('{"id": "v6", "video"', "not valid JSON"),
    "key": ({"id": "v6", "vidoe": "videos/v6.mp4"}, "vidoe: unknown key. Did you mean 'video'?"),
    "value": (
        {"id": "v6", "segments": [{"caption": 3}]},
        "segments.0.caption: Input should be a valid string (given: 3)",
    ),
}


@pytest.mark.parametrize("bad", BAD_LINES)
def test_a_bad_line_7(place: Path, capsys: pytest.CaptureFixture[str], bad: str):
    line, reason = BAD_LINES[bad]
    spoil(place, lambda records: records.__setitem__(6, line))
    assert_helps(train(place), capsys, "records.jsonl has 1 bad line(s)", "line 7: ", reason)


@pytest.mark.parametrize("bad", [*BAD_LINES, "nothing to see"])
def test_a_bad_line_7_is_a_wrong_answer(place: Path, capsys: pytest.CaptureFixture[str], bad: str):
    line, reason = BAD_LINES.get(bad, ({"id": "v6"}, "the record has neither video nor image"))
    spoil(place, lambda records: records.__setitem__(6, line))
    assert typed(EVALUATE.main, place, evaluation_tree(place)) == 1
    assert "1 answers failed and count as wrong" in capsys.readouterr().err
    lines = lines_of(place)
    (failed,) = [line for line in lines if line["type"] == "answer" and line["failed"]]
    assert failed["score"] == 0 and "records.jsonl, line 7: " in failed["reason"] and reason in failed["reason"]
    assert sum(line["type"] == "answer" for line in lines) > 40


def test_unknown_keys_all_at_once(place: Path, capsys: pytest.CaptureFixture[str]):
    tree = run_tree(place)
    tree["train"]["learning_rat"] = tree["precison"] = 1
    said = "config.yaml has 2 mistakes", "train.learning_rat: unknown key. Did you mean 'learning_rate'?"
    assert_helps(typed(STAGE2.main, place, tree), capsys, *said, "precison: unknown key. Did you mean 'precision'?")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("model.backbone.segmnts=3", "The backbone 'videogpt_plus' has no setting 'segmnts'. Did you mean 'segments'?"),
        ("model.compressor.name=langcd", "Unknown compressor 'langcd'. Did you mean 'langdc'?"),
        ("model.compressor.captioner.config.model_type=qwenn2", "no model_type 'qwenn2'. Nearest: qwen2,"),
        ("model.backbone.language_model=gone", "There is no checkpoint directory 'gone'"),
    ],
)
def test_unknown_parts_of_the_model(place: Path, capsys: pytest.CaptureFixture[str], change: str, said: str):
    assert_helps(train(place, change), capsys, said)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("model.compressor.captioner.config.hidden_size=40", "(32,), not (40,)"),
        (
            "model.backbone.language_model.config.num_hidden_layers=5",
            "language_model.config.num_hidden_layers: 3 there, 5 now",
        ),
        ("model.compressor={name: pool, sides: [3, 2]}", "unknown: compressor.captioner.language_model."),
    ],
)
def test_a_start_of_another_architecture(place: Path, capsys: pytest.CaptureFixture[str], change: str, said: str):
    """The second has more layers than the checkpoint, which would stay as they were drawn."""
    answer = ["objective=answer", "train.trainable=[backbone.projectors.*]"]
    code = train(place, f"start={place / 'langdc'}", change, *answer)
    assert_helps(code, capsys, f"The checkpoint {place / 'langdc'} is of another architecture", said)


@pytest.mark.parametrize("stage", ["stage2", "stage3"])
def test_segments_with_nothing_in_them_are_learned(place: Path, capsys: pytest.CaptureFixture[str], stage: str):
    """All but one record are of empty captions, so that batches have no caption token at all."""
    empty = [{"caption": "", "density": 0}] * 4
    spoil(place, lambda records: [record.update(segments=empty) for record in records[1:]])
    assert train(place, stage=stage) == 0
    assert "run: 2 steps, loss " in capsys.readouterr().out
    log = [json.loads(line) for line in (place / "run" / "log.jsonl").read_text().splitlines()]
    assert all(np.isfinite(line["loss"]) and line["loss"] > 0 for line in log)


@pytest.mark.parametrize("stage", ["stage2", "stage3"])
def test_too_few_segments(place: Path, capsys: pytest.CaptureFixture[str], stage: str):
    spoil(place, lambda records: records[6].update(segments=records[6]["segments"][:2]))
    assert_helps(train(place, stage=stage), capsys, "line 7 (id 'v6') has 2 segments; its media is cut into 4")
    assert not (place / "run" / "log.jsonl").exists(), "found before the first step"


@pytest.mark.parametrize("kept", [0, 6])
def test_questions_without_a_video_are_learned_as_text(place: Path, capsys: pytest.CaptureFixture[str], kept: int):
    spoil(place, lambda records: [record.pop("video") for record in records[kept:]])
    assert train(place, stage="stage3") == 0
    assert "run: 2 steps, loss " in capsys.readouterr().out


def test_records_without_questions_are_passed_over(place: Path, capsys: pytest.CaptureFixture[str]):
    spoil(place, lambda records: [record.pop("questions") for record in records[:4]])
    assert train(place, stage="stage3") == 0
    assert "4 samples" in capsys.readouterr().err


def test_captions_without_a_video(place: Path, capsys: pytest.CaptureFixture[str]):
    spoil(place, lambda records: [record.pop("video") for record in records])
    assert_helps(train(place), capsys, "No record of", "records.jsonl can be used for this objective")


@pytest.mark.parametrize(
    ("key", "said"), [("video", "8 record(s) have neither video nor image: 'v0'"), ("questions", "has no questions")]
)
def test_records_that_cannot_be_asked_about(place: Path, capsys: pytest.CaptureFixture[str], key: str, said: str):
    spoil(place, lambda records: [record.pop(key) for record in records])
    assert_helps(typed(EVALUATE.main, place, evaluation_tree(place)), capsys, "records.jsonl", said)


def test_missing_and_spoilt_videos_are_wrong_answers(place: Path, capsys: pytest.CaptureFixture[str]):
    _only_sound(place / "data" / "sound.mp4")
    spoil(place, lambda records: [records[i].update(video=v) for i, v in enumerate(["videos/gone.mp4", "sound.mp4"])])
    assert typed(EVALUATE.main, place, evaluation_tree(place), "limit=3") == 1
    lines = lines_of(place)
    reasons = {line["video"]: line["reason"] for line in lines if line["type"] == "answer"}
    assert "gone.mp4: there is no such file" in reasons["v0"] and "(only: audio)" in reasons["v1"]
    assert reasons["v2"] is None
    assert "answers failed" in capsys.readouterr().err


# --- asking -----------------------------------------------------------------------------------------------------------


def test_videos_that_cannot_be_asked_about(place: Path, sample_video: Path, capsys: pytest.CaptureFixture[str]):
    _cut_short(place / "cut.mp4", sample_video)
    _only_sound(place / "sound.mp4")
    (place / "empty.mp4").touch()
    (place / "notes.mp4").write_text("not a video")
    for name, said in (
        ("gone.mp4", "there is no such file. Check the path"),
        ("cut.mp4", "cannot be read as a video (Invalid data found when processing input). It is damaged"),
        ("notes.mp4", "cannot be read as a video"),
        ("sound.mp4", "holds no video (only: audio). Give a file with pictures."),
        ("empty.mp4", "the file is empty (0 bytes)"),
    ):
        assert_helps(ask(place / name, QUESTION, model=place / "langdc"), capsys, f"{place / name}: {said}")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([QUESTION], f"Given: VIDEO '{QUESTION}', --model DIR 'm'; missing: QUESTION."),
        (["clip.mp4", ""], "Given: VIDEO 'clip.mp4', --model DIR 'm'; missing: QUESTION."),
        ([], "Given: --model DIR 'm'; missing: VIDEO, QUESTION."),
    ],
)
def test_a_question_without_a_video_or_a_video_without_a_question(
    capsys: pytest.CaptureFixture[str], words: list[str], said: str
):
    assert_helps(ask(*words, model="m"), capsys, said, "For example: langdc ask clip.mp4 'what happens ?' --model")


def test_a_question_without_a_video_is_answered_by_the_language_model_alone(place: Path):
    answer = VideoLM.from_pretrained(place / "langdc").ask(None, QUESTION, max_new_tokens=2)
    assert answer.tokens == 0 and answer.captions is None


def test_blank_questions_and_numbers_out_of_range(place: Path, sample_video: Path, capsys: pytest.CaptureFixture[str]):
    assert_helps(ask(sample_video, " ", model=place / "langdc"), capsys, "The question is empty")
    code = cli.main(["ask", str(sample_video), QUESTION, "--model", str(place / "langdc"), "--max-new-tokens", "0"])
    assert_helps(code, capsys, "must be greater than 0, but is 0")
    assert_helps(cli.main(["ask", "--sample", "--seed", "-1"]), capsys, "The seed is -1; give 0 or more.")


def _other_architecture(card: dict) -> str:
    card["model"]["compressor"]["captioner"]["config"]["hidden_size"] = 40
    return json.dumps(card)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_other_architecture, "47 of another shape: "),
        (lambda card: json.dumps(card)[:200], "langdc.json is not valid JSON"),
        (lambda card: json.dumps({"version": card["version"]}), "langdc.json lacks lora, model, parts, weights_sha256"),
        (lambda card: json.dumps({**card, "weights_sha256": "0"}), "is not the file that langdc.json describes"),
    ],
    ids=["architecture", "cut", "keys", "weights"],
)
def test_checkpoints_that_do_not_fit(
    place: Path, sample_video: Path, capsys: pytest.CaptureFixture[str], change: Callable[[dict], str], said: str
):
    model = place / "spoilt"
    shutil.copytree(place / "langdc", model)
    card = checkpoint.read_manifest(model)
    (model / checkpoint.MANIFEST).write_text(change(card))
    assert_helps(ask(sample_video, QUESTION, model=model), capsys, str(model), said)
    tree = evaluation_tree(place)
    tree["entries"][0]["model"] = str(model)
    assert_helps(typed(EVALUATE.main, place, tree), capsys, str(model), said)


def test_directories_that_are_no_checkpoint(place: Path, sample_video: Path, capsys: pytest.CaptureFixture[str]):
    for model, said in (
        (place / "gone", "There is no checkpoint directory"),
        (place / "data", "holds no model: neither langdc.json nor config.json"),
        ("sample:lagdc", "no sample weights 'lagdc'; there is: clip, internvideo2, langdc, language_model, vlm"),
    ):
        assert_helps(ask(sample_video, QUESTION, model=model), capsys, said)


def test_segments_with_nothing_in_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Grey frames, to the model that ships: it says nothing of them, and each costs no token but its marker."""
    write_video(tmp_path / "grey.mp4", np.full((16, 64, 64, 3), 128, np.uint8), 8)
    answer = VideoLM.from_pretrained("sample:langdc").ask(tmp_path / "grey.mp4", "how many objects are in segment 2 ?")
    assert answer.captions == [""] * 4
    assert answer.segment_tokens == [1] * 4 and answer.tokens == 4
    assert ask(tmp_path / "grey.mp4", QUESTION, model="sample:langdc") == 0
    assert "4 of 2048 video tokens" in capsys.readouterr().out
