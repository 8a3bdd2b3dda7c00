"""Linear probes: ridge by its definition, halves that share no video, and labels that agree with the questions."""

import numpy as np
import pytest
import torch

from langdc.data.records import ObjectRecord, Record
from langdc.evaluate.probes import _PENALTIES, Probed, _ridge, covered, examples, probe, read, split
from langdc.sample.dataset import _segment as segment_record
from langdc.sample.questions import ask_all
from langdc.sample.scenes import sample_video

RNG = torch.Generator().manual_seed(0)


def _normal(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=RNG, dtype=torch.double)


@pytest.mark.parametrize("width", [3, 50])
def test_ridge_equals_the_solution_of_its_normal_equations(width: int) -> None:
    x, others = 5 * _normal(20, width) + 2, 5 * _normal(30, width) + 2
    x[:, 0], others[:, 0] = 1.0, 9.0  # never varies where it is trained, and so says nothing
    y = torch.nn.functional.one_hot(torch.randint(3, (20,), generator=RNG)).double()
    z, new = ((each - x.mean(0)) / x.std(0).clamp(min=1e-9) for each in (x, others))
    z[:, 0] = new[:, 0] = 0
    for penalty, found in zip((0.01, 3.0), _ridge(x, y, others, (0.01, 3.0)), strict=True):
        left = z.T @ z + penalty * 20 * torch.eye(width, dtype=torch.double)
        outputs = new @ torch.linalg.solve(left, z.T @ (y - y.mean(0))) + y.mean(0)
        assert torch.equal(found, outputs.argmax(1)) and len(set(found.tolist())) > 1


def test_a_planted_label_is_read_and_a_shuffled_one_is_not() -> None:
    video, part = torch.arange(600) // 10, split(60)
    y, order = torch.randint(3, (600,), generator=RNG), torch.randperm(600, generator=RNG)
    x = _normal(600, 8) + 9 * torch.eye(8, dtype=torch.double)[y]
    labels = [{"planted": f"{a}", "shuffled": f"{b}"} for a, b in zip(y.tolist(), y[order].tolist(), strict=True)]
    planted, shuffled = probe(labels, video, part, [x, _normal(600, 8)])
    assert [score.accuracy > 99 for score in planted.scores] == [True, False]
    assert planted.train == planted.test == 300 and planted.values == 3
    for score in [*shuffled.scores, planted.scores[1]]:
        assert abs(score.accuracy - 33) < 10 and 3 < score.half_width < 9
    test = part[video] == 2
    seen = torch.bincount(y[~test]).argmax()
    assert planted.majority == pytest.approx(100 * (y[test] == seen).double().mean().item())


def test_no_video_is_on_both_sides() -> None:
    part = split(61)
    assert [int((part == number).sum()) for number in range(3)] == [20, 11, 30] and torch.equal(part, split(61))
    video = torch.arange(61).repeat_interleave(10)
    says_video = torch.eye(61, dtype=torch.double)[video] + 0.01 * _normal(610, 61)
    labels = [{"coin": str(int(coin))} for coin in torch.randint(2, (61,), generator=RNG)[video]]
    (found,) = probe(labels, video, part, [says_video])
    assert found.scores[0].accuracy < 75  # it would be 100 with halves of examples


def test_the_penalty_is_the_one_that_does_best_held_out() -> None:
    y = torch.arange(240) % 2
    part = torch.cat([torch.zeros(80), torch.ones(40), torch.full((120,), 2)]).long()
    x = torch.cat([(2.0 * y - 1)[:, None] + _normal(240, 1), _normal(240, 60)], 1)
    target, both = torch.nn.functional.one_hot(y).double(), part < 2
    tried = _ridge(x[part == 0], target[part == 0], x[part == 1], _PENALTIES)
    right = [int((guess == y[part == 1]).sum()) for guess in tried]
    assert right.count(max(right)) < len(_PENALTIES) and right[-1] < max(right)
    best = _PENALTIES[right.index(max(right))]
    (expected,) = _ridge(x[both], target[both], x[part == 2], [best])
    (other,) = _ridge(x[both], target[both], x[part == 2], [_PENALTIES[-1]])
    assert torch.equal(read(x, y, part), expected) and not torch.equal(expected, other)


def test_labels_that_cannot_be_read_are_left_out_with_a_sentence() -> None:
    labels = [{"same": "a", **({"rare": f"{n % 2}"} if n < 12 else {})} for n in range(120)]
    found = list(probe(labels, torch.arange(120) // 2, split(60), [_normal(120, 2)]))
    assert found[0] == "same: all 60 training examples are 'a'."
    assert found[1].startswith("rare: ") and "each takes 20" in found[1]


def test_a_value_that_training_lacks_is_never_right() -> None:
    part = torch.tensor([0] * 40 + [2] * 40)
    labels = [{"kind": "new" if n == 78 else f"{n % 2}"} for n in range(80)]
    x = torch.tensor([[float(n % 2)] for n in range(80)])
    (found,) = probe(labels, torch.arange(80), part, [x])
    assert isinstance(found, Probed) and found.values == 2 and found.scores[0].accuracy == pytest.approx(100 * 39 / 40)


def test_patches_show_what_boxes_cover() -> None:
    thing = ObjectRecord(boxes=[None, [0.25, 0.0, 0.5, 0.5]])
    cover = covered(thing, 1, 2, (8, 4, 4, 99))
    assert cover[6:, :2, 1].gt(0).all() and cover.gt(0).sum() == 4  # the last quarter of the time, no more by rounding
    assert cover.sum() == pytest.approx(0.25 * 0.25 * 0.5)
    shifted = covered(ObjectRecord(boxes=[[0.0, 0.0, 0.375, 0.25]]), 0, 1, (1, 4, 4))
    assert (shifted[0, 0] / shifted.max()).tolist() == pytest.approx([1, 0.5, 0, 0])


def test_labels_of_the_sample_equal_the_answers_to_its_questions() -> None:
    checked = []
    for seed in range(60):
        rng = np.random.default_rng(seed)
        scenes = sample_video(rng)
        segments = [segment_record(scene, places=False) for scene in scenes]
        if not any(map(len, scenes)):
            continue
        objects, numbers = examples([Record(id="v", video="v.mp4", segments=segments)], torch.tensor([0]))["object"]
        assert numbers == [0] * len(objects) == [0] * sum(map(len, scenes))
        for question in ask_all(rng, scenes):
            label = {"left_right": "left or right", "upper_lower": "upper or lower"}.get(question.kind)
            if label:
                (one,) = [each for each in objects if each["colour"] == question.text.split()[2]]
                assert one[label] == question.answer
                checked.append(label)
    assert len(checked) > 60 and len(set(checked)) == 2


def test_a_segment_has_the_labels_of_its_only_object() -> None:
    def thing(side: float, **labels: str) -> ObjectRecord:
        return ObjectRecord(boxes=[[0, 0, side, side]], labels=labels)

    segments = [
        {"caption": "", "labels": {"background": "grey"}},
        {"caption": "", "objects": [thing(0.6, colour="red")]},
        {"caption": "", "objects": [thing(0.3, colour="blue"), thing(0.2, colour="red")]},
    ]
    found = examples([Record(id="v", video="v.mp4", segments=segments)], torch.tensor([0]))
    (objects, _), (parts, _) = found["object"], found["segment"]
    assert [each["larger than the median"] for each in objects] == ["yes", "no", "no"]
    assert [each.get("left or right") for each in objects] == ["left", "left", "left"]
    assert parts[0] == {"objects in the segment": "0", "background": "grey"}
    assert parts[1] == objects[0] and parts[2] == {"objects in the segment": "2"}
