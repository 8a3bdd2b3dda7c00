"""Data types: what they refuse, with the numbers in the message, and what travels together."""

from dataclasses import FrozenInstanceError

import pytest
import torch

from langdc.types import Answer, FeatureGrid, Frames, Prompt, Slot, VideoFeatures, VideoTokens


def tokens(n: int = 6) -> VideoTokens:
    return VideoTokens(
        values=torch.arange(n * 2.0).view(n, 2),
        segment=torch.arange(n) // 2,
        source=torch.arange(n) * 10,
        anchor=torch.arange(n) % 2 == 0,
        extra=(torch.arange(n)[:, None] * 100.0,),
    )


def test_frames_are_checked_with_numbers_in_the_message():
    assert len(Frames(torch.zeros(5, 3, 4, 4, dtype=torch.uint8), torch.arange(5.0))) == 5
    with pytest.raises(ValueError, match=r"shape \(5, 4, 4, 3\)"):
        Frames(torch.zeros(5, 4, 4, 3), torch.arange(5.0))
    with pytest.raises(ValueError, match="at least one frame"):
        Frames(torch.zeros(0, 3, 4, 4), torch.zeros(0))
    with pytest.raises(ValueError, match=r"seconds has shape \(4,\); pixels hold 5 frames"):
        Frames(torch.zeros(5, 3, 4, 4), torch.arange(4.0))


def test_grids_have_four_axes_and_fitting_sides():
    grid = FeatureGrid(torch.zeros(2, 3, 4, 8), torch.zeros(2, 3, 4), (torch.zeros(2, 3, 4, 5),))
    assert grid.tokens == 24
    with pytest.raises(ValueError, match=r"shape \(2, 12, 8\)"):
        FeatureGrid(torch.zeros(2, 12, 8))
    with pytest.raises(ValueError, match=r"\(2, 4, 3\) does not fit"):
        FeatureGrid(torch.zeros(2, 3, 4, 8), saliency=torch.zeros(2, 4, 3))
    with pytest.raises(ValueError, match="does not fit"):
        FeatureGrid(torch.zeros(2, 3, 4, 8), extra=(torch.zeros(1, 3, 4, 5),))


def test_features_hold_at_least_one_grid():
    grid = FeatureGrid(torch.zeros(1, 2, 2, 3))
    VideoFeatures((), {"clip": grid}, torch.zeros(1))
    VideoFeatures((grid,), {}, torch.zeros(1))
    with pytest.raises(ValueError, match="neither projected nor encoder"):
        VideoFeatures((), {}, torch.zeros(1))


@pytest.mark.parametrize("side", ["segment", "source", "anchor", "extra"])
def test_token_sides_have_as_many_rows_as_values(side: str):
    short = torch.zeros(4, dtype=torch.long)
    given = {"segment": torch.zeros(6, dtype=torch.long), side: (short,) if side == "extra" else short}
    with pytest.raises(ValueError, match=f"{side} has 4 rows; values has 6"):
        VideoTokens(torch.zeros(6, 2), **given)


def test_token_values_have_two_axes():
    with pytest.raises(ValueError, match=r"shape \(1, 6, 2\)"):
        VideoTokens(torch.zeros(1, 6, 2), torch.zeros(1))


@pytest.mark.parametrize("index", [torch.tensor([0, 3, 5]), torch.tensor([True, False, False, True, False, True])])
def test_take_acts_on_every_field(index: torch.Tensor):
    all_of_them = tokens()
    few = all_of_them.take(index)
    assert len(few) == 3
    assert few.values.tolist() == [[0, 1], [6, 7], [10, 11]]
    assert few.segment.tolist() == [0, 1, 2] and few.source.tolist() == [0, 30, 50]
    assert few.anchor.tolist() == [True, False, False] and few.extra[0].flatten().tolist() == [0, 300, 500]
    assert len(all_of_them) == 6, "the original is untouched"


def test_take_leaves_absent_fields_absent():
    few = VideoTokens(torch.zeros(3, 2), torch.arange(3)).take(torch.tensor([], dtype=torch.long))
    assert len(few) == 0 and few.source is None and few.anchor is None and few.extra == ()


def test_per_segment_counts_empty_segments_too():
    assert tokens().per_segment(4) == [2, 2, 2, 0]
    assert tokens().take(torch.tensor([0, 5])).per_segment(3) == [1, 0, 1]
    assert VideoTokens(torch.zeros(0, 2), torch.zeros(0, dtype=torch.long)).per_segment(2) == [0, 0]


def test_slots_lie_inside_the_prompt_in_order():
    ids = torch.arange(4)
    Prompt(ids, slots=(Slot(0, 0), Slot(4, 1), Slot(4, 0)))
    with pytest.raises(ValueError, match="position 5 of 4 prompt ids"):
        Prompt(ids, slots=(Slot(5, 0),))
    with pytest.raises(ValueError, match="position 1 of 4"):
        Prompt(ids, slots=(Slot(3, 0), Slot(1, 1)))
    with pytest.raises(ValueError, match="position -1"):
        Prompt(ids, slots=(Slot(-1, 0),))


@pytest.mark.parametrize("side", ["labels", "sequence_id"])
def test_prompt_sides_fit_its_ids(side: str):
    with pytest.raises(ValueError, match=f"Prompt.{side} has 3 entries; ids has 4"):
        Prompt(torch.arange(4), **{side: torch.arange(3)})


def test_nothing_can_be_reassigned_and_an_answer_reads_as_its_text():
    with pytest.raises(FrozenInstanceError):
        tokens().values = torch.zeros(1)
    assert str(Answer("ring", tokens=4, segment_tokens=[1, 3])) == "ring"
