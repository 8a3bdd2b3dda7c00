"""Every sample of an epoch is learned once, whatever the number of processes."""

import pytest
import torch
from accelerate.data_loader import BatchSamplerShard
from torch.utils.data import BatchSampler, SequentialSampler

from langdc.backbones.chat import IGNORED
from langdc.train.sharing import IDLE, Marked, Rounds, divided, marked, share_evenly


def shares(items: int, size: int, processes: int) -> list[list[list[int]]]:
    """The batches of each process, as accelerate's sampler gives them out."""
    found = []
    for process in range(processes):
        shard = BatchSamplerShard(BatchSampler(SequentialSampler(range(items)), size, False), processes, process)
        share_evenly(shard)
        found.append(list(shard))
        assert len(shard) == len(found[-1])
    return found


@pytest.mark.parametrize("items", range(1, 14))
@pytest.mark.parametrize(("size", "processes"), [(2, 2), (4, 1), (1, 3), (3, 2)])
def test_a_step_holds_the_same_samples_on_any_number_of_processes(items: int, size: int, processes: int):
    found = shares(items, size, processes)
    assert len({len(batches) for batches in found}) == 1, "all take as many steps"
    assert all(len(batch) <= size and batch for batches in found for batch in batches)
    steps = [sorted(i for batch in step for i in batch if i >= 0) for step in zip(*found, strict=True)]
    assert steps == [list(batch) for batch in BatchSampler(SequentialSampler(range(items)), size * processes, False)]


def test_what_is_left_is_divided_and_none_goes_without():
    assert divided([7, 8, 9], 2) == [[7, 8], [9]]
    assert divided([7], 3) == [[7], [-8], [-8]]


def test_an_idle_sample_has_no_targets():
    data = Marked([torch.tensor([1, 2]), torch.tensor([3, 4])])
    collate = marked(lambda rows: {"labels": torch.stack(rows), "rows": rows})
    assert IDLE not in collate([data[0], data[1]])
    idle = collate([data[-2]])
    assert idle[IDLE] and (idle["labels"] == IGNORED).all() and idle["rows"][0].tolist() == [3, 4]


def test_epochs_reach_the_sampler():
    class Sampler(SequentialSampler):
        epoch = 0

        def set_epoch(self, epoch: int) -> None:
            self.epoch = epoch

    sampler = Sampler(range(4))
    Rounds(BatchSampler(sampler, 2, False), 2).set_epoch(3)
    assert sampler.epoch == 3
