"""What an epoch has of several sets of records: caps, repeats, weights, alike lengths; packed rows; streamed files."""

from collections import Counter
from itertools import chain
from pathlib import Path
from statistics import fmean

import pytest
import torch

from langdc.config import DataConfig
from langdc.data.records import QuestionRecord, Record, write_records
from langdc.language_models import FLASH
from langdc.train import output, samples, setup
from langdc.train.mixing import capped, epoch_counts, epoch_samples, grouped
from langdc.train.objectives import objectives
from langdc.train.trainable import unfreeze
from langdc.train.trainer import EvenBatchSampler
from tests import tiny
from tests.train import small

WORDS = ("red", "ring", "left", "two", "moves", "blue")


def sets(*given: dict) -> list[DataConfig]:
    return [DataConfig(path=Path("x"), **each) for each in given]


def texts(path: Path, count: int = 24) -> str:
    """Records without a video, of very different lengths."""
    asked = [("what ? " + "red " * (11 * n % 37), WORDS[n % len(WORDS)]) for n in range(count)]
    questions = [QuestionRecord(kind="say", question=text, answer=answer) for text, answer in asked]
    write_records(path, [Record(id=f"{path.stem}{n}", questions=[one]) for n, one in enumerate(questions)])
    return str(path)


def data_of(*files: str, **changes):
    torch.manual_seed(0)
    model = tiny.model("pool")
    unfreeze(model, ["backbone.projectors.*", "backbone.language_model.model.layers.*"])
    return small.data_of(model, small.run_config(model, *files, **changes))


# ---- sets


def test_a_cap_draws_by_seed():
    assert capped(9, None, 0, 0).tolist() == capped(9, 12, 0, 0).tolist() == list(range(9))
    found = capped(100, 10, 0, 1).tolist()
    assert len(set(found)) == 10 and found == sorted(found) == capped(100, 10, 0, 1).tolist()
    assert found != capped(100, 10, 1, 1).tolist() and found != capped(100, 10, 0, 2).tolist()


def test_weights_are_shares_among_those_given():
    assert epoch_counts(sets({}, {"repeat": 1.5}, {"repeat": 0.5}), [5, 4, 10]) == [5, 6, 5]
    assert epoch_counts(sets({"weight": 3}, {}, {"weight": 1}), [10, 7, 30]) == [30, 7, 10]
    assert sum(epoch_counts(sets(*[{"weight": 1}] * 3), [10, 0 + 1, 5])) == 16
    with pytest.raises(ValueError, match="x has a weight, and none of its records"):
        epoch_counts(sets({"weight": 1}, {"weight": 1}), [4, 0])
    with pytest.raises(ValueError, match="an epoch of 3 records, repeated so rarely, has no sample"):
        epoch_counts(sets({"repeat": 0.1}), [3])


def test_half_of_the_records_come_twice_and_another_half_in_another_epoch():
    found = [Counter(epoch_samples([3, 8], [3, 12], 0, epoch).tolist()) for epoch in (0, 0, 1)]
    assert all(set(each) == set(range(11)) and [each[n] for n in range(3)] == [1, 1, 1] for each in found)
    assert all(sorted(each.values()) == [1] * 7 + [2] * 4 for each in found)
    assert found[0] == found[1] != found[2]
    assert Counter(epoch_samples([2, 4], [7, 1], 3, 0).tolist()).total() == 8
    assert epoch_samples([2, 4], [2, 4], 3, 0).tolist() == list(range(6)), "as the files have them"


def test_a_run_draws_its_sets_and_its_hash_says_so(tmp_path: Path):
    many, few = texts(tmp_path / "many.jsonl", 20), texts(tmp_path / "few.jsonl", 4)

    def run(*entries: object, seed: int = 0):
        config = small.run_config(tiny.config("pool"), many, seed=seed)
        train = config.train.model_copy(update={"data": list(entries)})
        model = tiny.model("pool")
        return small.data_of(model, config.model_copy(update={"train": train}))

    plain = run(Path(many), Path(few))
    mixed = run(DataConfig(path=Path(many), cap=8, weight=1), DataConfig(path=Path(few), weight=3))
    assert plain.counts == [20, 4] and mixed.sizes == [8, 4] and mixed.counts == [3, 9] and mixed.epoch_length == 12
    batches = [i for batch in EvenBatchSampler(12, 5, 0, mixed.epoch_samples) for i in batch]
    assert Counter(mixed.samples[i].entry for i in batches) == {0: 3, 1: 9}
    other = run(DataConfig(path=Path(many), cap=8, weight=1), DataConfig(path=Path(few), weight=2))
    again = run(DataConfig(path=Path(many), cap=8, weight=1), DataConfig(path=Path(few), weight=3))
    assert mixed.hash() == again.hash() and len({plain.hash(), mixed.hash(), other.hash()}) == 3
    assert [s.record.id for s in mixed.samples] == [s.record.id for s in again.samples]
    drawn = run(DataConfig(path=Path(many), cap=8), Path(few), seed=1)
    assert [s.record.id for s in drawn.samples] != [s.record.id for s in mixed.samples]


# ---- lengths


@pytest.mark.parametrize(("items", "size", "accumulation"), [(23, 2, 2), (410, 2, 1)])
def test_steps_of_alike_lengths_are_the_same_on_two_processes(items: int, size: int, accumulation: int):
    lengths = torch.randint(1, 100, (items,), generator=torch.Generator().manual_seed(1)).tolist()

    def steps(processes: int, epoch: int = 0) -> list[list[int]]:
        per_rank = []
        for rank in range(processes):
            each = size * 2 // processes
            sampler = EvenBatchSampler(items, each, 0, None, lengths.__getitem__, accumulation)
            sampler.rank, sampler.processes, sampler.epoch = rank, processes, epoch
            per_rank.append(list(sampler))
            assert len(per_rank[-1]) == len(sampler)
        micro = [[i for batch in each for i in batch if i >= 0] for each in zip(*per_rank, strict=True)]
        return [list(chain(*micro[n : n + accumulation])) for n in range(0, len(micro), accumulation)]

    found = steps(1)
    assert found == steps(2) and found != steps(1, epoch=1)
    assert sorted(chain(*found)) == list(range(items))
    whole = size * 2 * accumulation
    assert [len(step) for step in found[:-1]] == [whole] * (len(found) - 1), "what is left is the last step"
    spread = fmean(max(lengths[i] for i in step) - min(lengths[i] for i in step) for step in found)
    assert spread < (30 if items < 100 else 5), "of 1 to 100"
    assert [lengths[step[0]] for step in found] != sorted((lengths[step[0]] for step in found), reverse=True)


def test_the_log_shows_less_padding(tmp_path: Path):
    """The same samples; of an epoch of one window the lengths of steps are shuffled."""
    file = texts(tmp_path / "texts.jsonl")
    found = {}
    for name, settings in {"off": {}, "grouped": {"group_by_length": True}, "packed": {"packing": True}}.items():
        trainer = small.train(data_of(file, batch_size=4, steps=6, **settings), tmp_path / name)
        found[name] = fmean(small.losses(trainer, "padding"))
        assert sum(len(batch) for batch in trainer.batches) == 24
        if name == "off":
            unpacked = small.losses(trainer)
        if name == "packed":
            assert small.losses(trainer) == pytest.approx(unpacked, abs=1e-5)
    assert found["grouped"] < 0.4 * found["off"] and found["packed"] < 0.8 * found["off"], found


def test_lengths_count_what_is_read_of_videos_and_images(tmp_path: Path):
    data = data_of("train", "images", "text", group_by_length=True)
    lengths: dict[str, set[int]] = {"video": set(), "image": set(), "text": set()}
    for index, sample in enumerate(data.samples):
        kind = "text" if not sample.specs else ("video" if sample.record.video else "image")
        (prompt,) = small.batch_of(data, index)["batch"].prompts
        batch = small.batch_of(data, index)["batch"]
        tokens = data.model.compress(data.model.features(batch)).tokens
        read = len(prompt.ids) + (sum(map(len, tokens)) if sample.specs else 0)
        lengths[kind].add(round(read - data.length(index)))
    assert all(len(each) == 1 for each in lengths.values()), "but for what the template adds, the same everywhere"


# ---- packing


def test_packing_is_refused_where_it_cannot_be():
    model = tiny.model("pool")

    def check(**changes) -> None:
        config = small.run_config(model, **changes)
        setup._set_kernels(model, config, objectives.build(config.objective.name))

    with pytest.raises(ValueError, match=r"flash_attention_2 cannot be used with train\.packing"):
        check(packing=True, attention=FLASH)
    with pytest.raises(ValueError, match=r"train\.packing: the objective 'compress' does not call"):
        check(packing=True, objective="compress")
    model.backbone.text_model.config.sliding_window = 8
    with pytest.raises(ValueError, match=r"train\.packing: the language model of 'videogpt_plus' has .*sliding_attent"):
        check(packing=True)


# ---- streaming


def shards(folder: Path) -> Path:
    """The sample's videos in two files of a folder, with empty lines and a byte order mark."""
    folder.mkdir()
    lines = (small.folder() / "train.jsonl").read_text().splitlines()
    lines = [line.replace('"video": "', f'"video": "{small.folder()}/') for line in lines]
    (folder / "a.jsonl").write_text("\ufeff" + "\n\n".join(lines[:4]) + "\n")
    (folder / "b.jsonl").write_text("\n" + "\n".join(lines[4:]))
    return folder


def test_streamed_samples_are_those_of_the_files(tmp_path: Path):
    folder = str(shards(tmp_path / "shards"))
    kept, streamed = (data_of(folder, "text", streaming=streaming) for streaming in (False, True))
    assert list(streamed.samples) == list(kept.samples) and len(streamed) == 10
    assert "b.jsonl: line 2" in kept.samples[4].where and "a.jsonl: line 3" in kept.samples[1].where


def test_a_streamed_record_is_read_when_it_is_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    file = Path(texts(tmp_path / "texts.jsonl", 500))
    lines = file.read_text().splitlines()
    lines[6], lines[7] = lines[6].replace('"answer"', '"answr"'), '{"id": "bare"}'
    file.write_text("\n".join(lines) + "\n")
    read, original = [], samples.read_record
    monkeypatch.setattr(samples, "read_record", lambda *place: read.append(place) or original(*place))
    data = data_of(str(file), streaming=True)
    assert read == [] and len(data) == 500, "no record was parsed"
    assert data.samples.rows.nbytes == 24 * 500, "what is held of a record"
    assert data[499].record.id == "texts499" and len(read) == 1
    with pytest.raises(ValueError, match=r"texts\.jsonl has 1 bad line.*\n.*line 7: .*answr"):
        data[6]
    with pytest.raises(ValueError, match=r"texts\.jsonl: line 8 \(id 'bare'\) has nothing to learn.*take it out"):
        data[7]


def test_a_streamed_file_that_changes_ends_the_run(tmp_path: Path):
    """The bytes at which records begin are of the former one."""
    file = Path(texts(tmp_path / "texts.jsonl", 8))
    data = data_of(str(file), streaming=True)
    before = data[3].record
    file.write_text(file.read_text()[1:])
    with pytest.raises(ValueError, match=r"texts\.jsonl was changed while the run reads it"):
        data[3]
    assert before.questions


def test_streaming_refuses_what_reads_all_before(tmp_path: Path):
    with pytest.raises(ValueError, match=r"train\.streaming reads a record when a step needs it.*leave out features"):
        data_of("train", streaming=True, features=str(tmp_path))
    with pytest.raises(ValueError, match=r"There is no record file .*none\.jsonl"):
        data_of(str(tmp_path / "none.jsonl"), streaming=True)
    with pytest.raises(ValueError, match="there is no record in it"):
        data_of(str(tmp_path), streaming=True)


# ---- all together


@pytest.mark.slow
def test_all_of_it_resumes_bit_equal(tmp_path: Path):
    folder = shards(tmp_path / "shards")
    few = Path(texts(tmp_path / "texts.jsonl", 8))

    def data():
        found = data_of("train", batch_size=3, steps=7, save_steps=4, keep_checkpoints=9)
        entries = [DataConfig(path=folder, weight=2), DataConfig(path=few, cap=6, weight=3)]
        more = {"data": entries, "streaming": True, "group_by_length": True, "packing": True}
        train = found.config.train.model_copy(update=more)
        return small.data_of(found.model, found.config.model_copy(update={"train": train}))

    whole = small.train(data(), tmp_path / "whole")
    assert whole.data.counts == [5, 7] and len(whole.batches) == 4
    (kept,) = output.checkpoints(tmp_path / "whole")
    (tmp_path / "cut").mkdir()
    kept.rename(tmp_path / "cut" / kept.name)
    again = small.train(data(), tmp_path / "cut", resume=True)
    assert small.losses(again) == small.losses(whole)
    ours, theirs = again.trained(), whole.trained()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_windows_are_grouped_one_after_the_other():
    """Lengths of samples far ahead are not asked for yet."""
    asked: list[int] = []
    windows = grouped(torch.arange(1000), 2, lambda i: asked.append(i) or -i, torch.Generator().manual_seed(0))
    first = next(windows)
    assert sorted(first.tolist()) == asked == list(range(100))
