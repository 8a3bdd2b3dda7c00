"""The sample set: the same files whoever makes them, resumable, never mixed, with records that fit the videos."""

import runpy
import shutil
from pathlib import Path

import numpy as np
import pytest

from langdc import jsonl
from langdc.data.records import QuestionRecord, Record, check_media, read_records
from langdc.sample import dataset, weights
from langdc.sample.dataset import majority_chance, make_dataset
from langdc.sample.questions import GROUPS
from langdc.sample.render import _mask as drawn_mask
from langdc.sample.render import draw_video
from langdc.sample.scenes import sample_video
from langdc.video import probe, read_frames

SMALL = {"videos": {"train": 5, "test": 3}, "images": 4, "seed": 11}
main = runpy.run_path(str(Path(__file__).parents[2] / "data_prep" / "sample.py"))["main"]


def _files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture(scope="module")
def small_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("set") / "sample"
    assert make_dataset(folder, **SMALL, workers=1)
    return folder


def test_files_and_records_fit_together(small_set: Path) -> None:
    assert sorted(p.name for p in small_set.iterdir()) == [
        "dataset.json",
        "images",
        "images.jsonl",
        "test.jsonl",
        "train.jsonl",
        "videos",
    ]
    for split, size in (("train", 5), ("test", 3), ("images", 4)):
        records = read_records(small_set / f"{split}.jsonl")
        assert len(records) == size
        assert check_media(small_set / f"{split}.jsonl", records) == records
        for record in records:
            path = record.media_path(small_set)
            info = probe(path)
            assert (info.frames, info.height, info.width) == (1 if split == "images" else 16, 64, 64)
            assert path.stat().st_size < 40_000


def test_segments_carry_caption_density_and_cues(small_set: Path) -> None:
    for record in read_records(small_set / "test.jsonl"):
        assert len(record.segments) == 4
        for segment in record.segments:
            words = [part.split() for part in segment.caption.split(" ; ")] if segment.caption else []
            assert segment.density == len(words)
            cues = zip(segment.attributes, segment.subjects, segment.actions, strict=True)
            assert [list(cue) for cue in cues] == words
    for record in read_records(small_set / "images.jsonl"):
        (segment,) = record.segments
        words = [part.split() for part in segment.caption.split(" ; ")] if segment.caption else []
        assert [list(cue) for cue in zip(segment.attributes, segment.subjects, strict=True)] == words
        assert segment.actions == []


def test_questions_per_split(small_set: Path) -> None:
    for record in read_records(small_set / "test.jsonl"):
        kinds = [question.kind for question in record.questions]
        assert "count" in kinds
        assert len(kinds) == len(set(kinds))
    train = read_records(small_set / "train.jsonl")
    for record in train:
        texts = [question.question for question in record.questions]
        assert len(texts) == len(set(texts))
    assert max(len(record.questions) for record in train) > 8


def test_target_questions_say_their_group(tmp_path: Path) -> None:
    assert make_dataset(tmp_path / "set", {"train": 4}, images=0, workers=1)
    asked = [question for record in read_records(tmp_path / "set" / "train.jsonl") for question in record.questions]
    grouped = {question.kind: question.labels.get("group") for question in asked}
    assert {kind for kind, group in grouped.items() if group == "said"} <= set(GROUPS["said"])
    assert {kind for kind, group in grouped.items() if group == "unsaid"} == set(GROUPS["unsaid"])
    assert grouped["choice"] is grouped["describe"] is None


def test_an_image_shows_all_that_its_caption_says(tmp_path: Path) -> None:
    assert make_dataset(tmp_path / "set", {}, images=30, seed=3, workers=1)
    for record in read_records(tmp_path / "set" / "images.jsonl"):
        pixels = read_frames(record.media_path(tmp_path / "set")).pixels[0].permute(1, 2, 0).numpy().astype(int)
        background = np.median(pixels.reshape(-1, 3), axis=0)
        things = (abs(pixels - background).max(-1) > 50).sum()
        assert (things > 40) == bool(record.segments[0].caption)
        assert things >= 25 * record.segments[0].density


def test_videos_show_what_their_records_say(small_set: Path) -> None:
    for number, record in enumerate(read_records(small_set / "test.jsonl")):
        scenes = sample_video(np.random.default_rng([11, 1, number]))
        assert [segment.density for segment in record.segments] == [len(scene) for scene in scenes]
        clean = draw_video(scenes, np.random.default_rng(0))
        seen = read_frames(record.media_path(small_set)).pixels.permute(0, 2, 3, 1).numpy()
        coloured = np.ptp(clean.astype(int), axis=-1) > 90
        difference = abs(np.ptp(clean.astype(int), axis=-1) - np.ptp(seen.astype(int), axis=-1))
        assert not coloured.any() or difference[coloured].mean() < 40


def test_objects_are_where_they_are_drawn_and_what_questions_say(tmp_path: Path) -> None:
    assert make_dataset(tmp_path / "set", {"test": 12}, images=0, workers=1)
    asked = 0
    for number, record in enumerate(read_records(tmp_path / "set" / "test.jsonl")):
        scenes = sample_video(np.random.default_rng([0, 1, number]))
        for scene, segment in zip(scenes, record.segments, strict=True):
            assert segment.caption == " ; ".join(each.phrase for each in segment.objects)
            for thing, found in zip(scene, segment.objects, strict=True):
                assert [box is None for box in found.boxes] == [frame < thing.start for frame in range(4)]
                for frame in range(thing.start, 4):
                    rows, columns = np.nonzero(drawn_mask(thing, frame))
                    left, top, right, bottom = (64 * edge for edge in found.boxes[frame])
                    assert left <= columns.min() <= left + 1 and right - 2 <= columns.max() < right
                    assert top <= rows.min() <= top + 1 and bottom - 2 <= rows.max() < bottom
        every = [each for segment in record.segments for each in segment.objects]
        for question in record.questions:
            words = question.question.split()
            if question.kind in ("shape", "motion"):
                (one,) = [each for each in every if each.labels["colour"] in words]
                assert one.labels[question.kind] == question.answer
            if question.kind == "background":
                assert record.segments[int(words[6]) - 1].labels["background"] == question.answer
            asked += question.kind in ("shape", "motion", "background")
    assert asked > 20


@pytest.mark.slow
def test_the_set_does_not_depend_on_who_makes_it(small_set: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(dataset, "_CHUNK", 3)
    assert make_dataset(tmp_path / "two", **SMALL, workers=2)
    assert _files(tmp_path / "two") == _files(small_set)


def test_an_interrupted_run_goes_on(small_set: Path, tmp_path: Path, monkeypatch) -> None:
    folder, write, calls = tmp_path / "set", dataset.write_video, []

    def stop_at_four(path: Path, *rest: object) -> None:
        calls.append(path)
        if len(calls) == 4:
            raise KeyboardInterrupt
        write(path, *rest)

    monkeypatch.setattr(dataset, "write_video", stop_at_four)
    with pytest.raises(KeyboardInterrupt):
        make_dataset(folder, **SMALL, workers=1)
    assert not (folder / "dataset.json").exists()
    assert not (folder / "train.jsonl").exists()
    assert make_dataset(folder, **SMALL, workers=1)
    assert len(calls) == 4 + 5, "three videos were kept"
    assert _files(folder) == _files(small_set)


@pytest.mark.parametrize("left", [[], [".lock"], [".lock", "dataset.json.partial.partial"]])
def test_what_a_kill_at_the_start_leaves_can_be_used(small_set: Path, tmp_path: Path, left: list[str], monkeypatch):
    (tmp_path / "set").mkdir()
    for name in left:
        (tmp_path / "set" / name).touch()
    mkdir = Path.mkdir
    monkeypatch.setattr(Path, "mkdir", lambda path, **more: mkdir(path, **more) if path.name == "set" else _killed())
    with pytest.raises(KeyboardInterrupt):
        make_dataset(tmp_path / "set", **SMALL, workers=1)
    monkeypatch.undo()
    (tmp_path / "set" / "videos").mkdir()
    (tmp_path / "set" / "videos" / "train-000000.mp4").touch()  # a name that was on the disk before its content
    assert make_dataset(tmp_path / "set", **SMALL, workers=1)
    assert _files(tmp_path / "set") == _files(small_set)


def _killed() -> None:
    raise KeyboardInterrupt


def test_one_process_at_a_time_makes_a_set(tmp_path: Path) -> None:
    with jsonl.locked(tmp_path / jsonl.LOCK, ""), pytest.raises(ValueError, match="is making the sample set"):
        make_dataset(tmp_path, **SMALL)


def test_a_finished_set_is_left_alone_and_others_are_never_mixed_in(small_set: Path, tmp_path: Path) -> None:
    before = _files(small_set)
    assert make_dataset(small_set, **SMALL) is False
    with pytest.raises(ValueError, match=r"'seed': 11.*'seed': 12.*another folder"):
        make_dataset(small_set, **{**SMALL, "seed": 12})
    assert _files(small_set) == before
    (tmp_path / "note.txt").write_text("mine")
    with pytest.raises(ValueError, match="no sample set"):
        make_dataset(tmp_path, **SMALL)


@pytest.mark.parametrize("gone", ["videos/train-000000.mp4", "images", "test.jsonl"])
def test_what_was_deleted_of_a_set_is_made_again(small_set: Path, tmp_path: Path, gone: str) -> None:
    folder = Path(shutil.copytree(small_set, tmp_path / "set"))
    shutil.rmtree(folder / gone) if (folder / gone).is_dir() else (folder / gone).unlink()
    assert make_dataset(folder, **SMALL, workers=1) and _files(folder) == _files(small_set)


def test_captions_and_cues_alone_say_places(small_set: Path, tmp_path: Path) -> None:
    assert make_dataset(tmp_path / "said", **SMALL, workers=1, places=True)
    before, after = _files(small_set), _files(tmp_path / "said")
    assert {name for name in before if before[name] != after[name]} == {
        "dataset.json", "images.jsonl", "test.jsonl", "train.jsonl"
    }  # fmt: skip
    for split in ("train", "test", "images"):
        for old, new in zip(*(read_records(f / f"{split}.jsonl") for f in (small_set, tmp_path / "said")), strict=True):
            for plain, said in zip(old.segments, new.segments, strict=True):
                parts = said.caption.split(" ; ") if said.caption else []
                assert plain.caption == " ; ".join(" ".join(part.split()[:-2]) for part in parts)
                places = [" ".join(part.split()[-2:]) for part in parts]
                assert said == plain.model_copy(
                    update={"caption": said.caption, "attributes": [*plain.attributes, *places]}
                )
            asked = zip(old.questions, new.questions, strict=True)
            assert all(one == other for one, other in asked if not one.kind.startswith("describe"))
    with pytest.raises(ValueError, match="another folder"):
        make_dataset(small_set, **SMALL, places=True)


@pytest.mark.parametrize(("videos", "reason"), [({"trian": 3}, "Did you mean 'train'"), ({"test": -1}, "0 or more")])
def test_impossible_sizes(tmp_path: Path, videos: dict[str, int], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        make_dataset(tmp_path / "set", videos)
    assert not (tmp_path / "set").exists()


def test_majority_chance_of_known_answers() -> None:
    answers = {"count": ["1", "1", "2", "3"], "shape": ["ring"]}
    questions = [QuestionRecord(kind=k, question="?", answer=a) for k, given in answers.items() for a in given]
    records = [Record(id="a", questions=questions[:2]), Record(id="b", questions=questions[2:])]
    assert majority_chance(records) == {"count": 0.5, "shape": 1.0}


def test_the_application(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["--out", str(tmp_path / "set"), "--train", "2", "--test", "2", "--images", "1", "--workers", "1"]
    assert main(command) == 0
    said = capsys.readouterr().out
    assert "2 training videos, 2 test videos, 1 images" in said
    assert "majority-class chance" in said
    assert "background" in said and "unsaid" in said
    assert main(command) == 0
    assert "there already" in capsys.readouterr().out
    assert main([*command, "--seed", "5"]) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("error: ")
    assert "\n" not in error


@pytest.mark.parametrize("wrong", [{"seed": -1}, {"workers": 0}, {"workers": -2}])
def test_seeds_and_processes_that_there_are_not(tmp_path: Path, wrong: dict[str, int]):
    with pytest.raises(ValueError, match="give a seed of 0 or more, and 1 process or more"):
        make_dataset(tmp_path / "set", {"train": 1}, 0, **wrong)
    assert not (tmp_path / "set").exists()


@pytest.mark.parametrize("name", ["", ".", "../weights", "vlmm"])
def test_weights_that_the_package_has_not(name: str):
    """No name is the folder of all, or one elsewhere."""
    with pytest.raises(ValueError, match=r"there is: clip, .*, vlm"):
        weights(name)
