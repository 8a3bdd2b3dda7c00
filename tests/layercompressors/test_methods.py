"""Each layer compressor against its literal version, and how a budget becomes numbers of rows."""

import re
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from langdc.interfaces import Rows
from langdc.layercompressors import build, layercompressors
from langdc.layercompressors.base import BudgetedLayers
from langdc.walk import paid_attention
from tests.reference import layers as reference

SHAPES = [(0, 9, 3), (3, 24, 6), (1, 40, 1), (7, 61, 9)]
"""Rows before the video, of it, and after it."""
LAYERS, WIDTH, HEADS, GROUPS, HEAD, FRAME = 32, 12, 4, 2, 8, 4


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def rows_of(shape: tuple[int, int, int], layers: int = LAYERS) -> Rows:
    before, shown, after = shape
    length = before + shown + after
    video_id = torch.full([length], -1)
    video_id[before : before + shown] = 0
    in_frame = torch.where(video_id < 0, -1, (torch.arange(length) - before) % FRAME)
    states = noise(length, WIDTH).float()
    return Rows(states, torch.arange(length), video_id, layers, shown, after, in_frame=in_frame)


def layer_of(rows: Rows) -> tuple[Tensor, Tensor]:
    """Queries [h,n,E] and keys [G,n,E] that tell rows apart."""
    return 2 * noise(HEADS, len(rows.index), HEAD, seed=1), 2 * noise(GROUPS, len(rows.index), HEAD, seed=2)


def seen(rows: Rows, query: Tensor, key: Tensor, asking: Tensor) -> Rows:
    attention = paid_attention(query[None].float(), key[None].float(), asking)
    return replace(rows, attention=attention, keys=key.float(), normed=noise(len(rows.index), 9, seed=3).float())


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("name", "settings"), [("fastv", {"layer": 1}), ("pyramiddrop", {"at": (0.1,)})])
@pytest.mark.parametrize("keep", [0.2, 0.5, 0.9])
def test_by_the_last_row(shape, name: str, settings: dict, keep: float) -> None:
    rows, member = rows_of(shape), build(name, keep=keep, **settings)
    (at,) = member.begin(rows)
    query, key = layer_of(rows)
    found = member.keep(at, seen(rows, query, key, torch.arange(len(rows.index))[-1:]))
    count = int((keep * LAYERS - at - 1) * shape[1] / (LAYERS - at - 1) + 1e-6)
    text = (rows.video_id < 0).nonzero()[:, 0].tolist()
    expected = reference.by_last_row(query, key, rows.video.tolist(), count)
    assert found.index.tolist() == sorted(text + expected)
    assert torch.equal(found.states, rows.states[found.index]) and found.attention is None


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("recycle", [True, False])
@pytest.mark.parametrize("count", [1, 4, 20, 39])
def test_sparsevlm(shape, recycle: bool, count: int) -> None:
    rows, count = rows_of(shape), min(count, shape[1] - 1)
    member = build("sparsevlm", stages=[count], after=[0], recycle=recycle)
    assert member.begin(rows) == [0]
    query, key = layer_of(rows)
    asking = reference.raters(rows.states.double().tolist(), rows.video.tolist(), rows.question.tolist())
    assert rows.question[member.raters].tolist() == asking
    found = member.keep(0, seen(rows, query, key, rows.question))
    expected = rows.states.double().tolist()
    kept, means = reference.sparsevlm(expected, query, key, rows.video.tolist(), asking, count)
    text = (rows.video_id < 0).nonzero()[:, 0].tolist()
    assert found.index.tolist() == sorted(text + kept + (list(means) if recycle else []))
    states = [means[i] if recycle and i in means else expected[i] for i in found.index.tolist()]
    torch.testing.assert_close(found.states.double(), torch.tensor(states).double(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["fastv", "pyramiddrop", "sparsevlm", "holitom_inner"])
def test_of_equals_the_earlier_go_on(name: str) -> None:
    rows, member = rows_of((2, 24, 3)), build(name, keep=0.9, **({"recycle": False} if name == "sparsevlm" else {}))
    at = member.begin(rows)[0]
    found = member.keep(at, replace(rows, attention=torch.ones(3, len(rows.index))))
    count = len(found.index) - 5
    assert 0 < count < 24 and found.index.tolist() == [*range(2 + count), 26, 27, 28]


def test_rows_that_all_questions_like_the_same_rate_all() -> None:
    rows = rows_of((2, 9, 4))
    rows.states[rows.question] = rows.states[-1].clone()
    member = build("sparsevlm", keep=0.5)
    member.begin(rows)
    assert member.raters.all()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("keep", [0.2, 0.5, 0.9])
def test_holitom(shape, keep: float) -> None:
    rows, member = rows_of(shape), build("holitom_inner", keep=keep, layer=1)
    (at,) = member.begin(rows)
    query, key = layer_of(rows)
    found = member.keep(at, seen(rows, query, key, torch.arange(len(rows.index))[-1:]))
    states = rows.states.double().tolist()
    merged = reference.halved(states, query, key, rows.video.tolist(), member.left[0])
    text = (rows.video_id < 0).nonzero()[:, 0].tolist()
    assert found.index.tolist() == sorted(text + list(merged))
    expected = torch.tensor([merged.get(i, states[i]) for i in found.index.tolist()]).double()
    torch.testing.assert_close(found.states.double(), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("variant", ["fixed", "released"])
@pytest.mark.parametrize(("keep", "pivots"), [(0.2, 4), (0.5, 4), (0.9, 4), (0.6, 1), (0.5, 7)])
def test_dart(shape, variant: str, keep: float, pivots: int) -> None:
    rows, member = rows_of(shape), build("dart", keep=keep, layer=1, variant=variant, pivots=pivots)
    (at,) = member.begin(rows)
    query, key = layer_of(rows)
    given = seen(rows, query, key, rows.question)
    found = member.keep(at, given)
    normed, video, question = given.normed.double().tolist(), rows.video.tolist(), rows.question.tolist()
    kept = reference.dart(normed, key, video, question, member.left[0], pivots, variant == "released")
    text = (rows.video_id < 0).nonzero()[:, 0].tolist()
    assert found.index.tolist() == sorted(text + kept)
    assert len(kept) == member.left[0] or variant == "released"


FUSIONS = [(0.3, 0.6, 0.1), (0.3, 0.95, 0.0), (0.5, 0.7, 0.02), (0.15, 0.9, 0.0), (0.7, 0.99, 0.5), (0.9, 0.6, 0.1)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("keep", "similarity", "least"), FUSIONS)
def test_framefusion(shape, keep: float, similarity: float, least: float) -> None:
    """Call by call; frames are like those before, each place in its own measure, and change from layer to layer."""
    rows = rows_of(shape)
    calm = torch.linspace(0.1, 1.5, FRAME).double()[rows.in_frame, None] * noise(len(rows.index), WIDTH, seed=5)
    rows = replace(rows, states=(noise(FRAME + 1, WIDTH, seed=6)[rows.in_frame] + calm).float())
    drift, attention = noise(len(rows.index), WIDTH, seed=7) / 2, noise(1, len(rows.index), seed=8).float()
    expected = reference.framefusion(
        {row: rows.states[row].double().tolist() for row in rows.video.tolist()},
        drift.tolist(), attention[0].tolist(), rows.in_frame.tolist(), (keep, similarity, least), LAYERS,
    )  # fmt: skip
    member, text = build("framefusion", keep=keep, similarity=similarity, least=least), rows.index[rows.video_id < 0]
    sites, read = member.begin(rows), 0
    for layer in range(-1, LAYERS):
        if layer >= 0:
            read += len(rows.video)
            rows = replace(rows, states=rows.states + drift[rows.index].float())
        if layer in sites:
            found, kept = member.keep(layer, replace(rows, attention=attention[:, rows.index])), expected.pop(0)
            assert found.index.tolist() == sorted(text.tolist() + list(kept))
            states = torch.tensor([kept[row] for row in sorted(kept)]).double()
            torch.testing.assert_close(found.states[found.video_id >= 0].double(), states, atol=1e-5, rtol=1e-5)
            assert torch.equal(found.states[found.video_id < 0], rows.states[rows.video_id < 0])
            rows = found
    assert not expected and keep * LAYERS * shape[1] - LAYERS < read <= keep * LAYERS * shape[1] + 1e-6


def test_framefusion_merges_within_frames_of_one_video() -> None:
    """All rows are alike, but the first of each place of each video has none before it, and a newline has no place."""
    rows = rows_of((1, 24, 3))
    rows.states[:] = 1.0
    rows.video_id[13:25] = 1
    rows.in_frame[24] = -1
    member = build("framefusion", keep=0.1)
    member.begin(rows)
    found = member.keep(-1, rows)
    assert found.index.tolist() == [0, 1, 2, 3, 4, 13, 14, 15, 16, 24, 25, 26, 27]


def test_framefusion_says_the_least_budget() -> None:
    """In either unit, also for a chunk that has half of the prompt's video."""
    rows = replace(rows_of((1, 24, 3)), shown=48)

    def first(**budget) -> None:
        member = build("framefusion", similarity=1.0, **budget)
        member.begin(rows)
        member.keep(-1, rows)

    with pytest.raises(ValueError, match="more than the budget") as error:
        first(keep=0.01)
    keep, tokens = re.findall(r"keep to at least (\S+), or tokens to (\d+),", str(error.value))[0]
    first(keep=float(keep))
    first(tokens=int(tokens))
    for less in ({"keep": float(keep) - 0.001}, {"tokens": int(tokens) - 1}):
        with pytest.raises(ValueError, match="more than the budget"):
            first(**less)


def test_framefusion_needs_frames() -> None:
    with pytest.raises(ValueError, match="place by place; the tokens given are not frames"):
        build("framefusion", keep=0.5).begin(replace(rows_of((1, 24, 3)), in_frame=None))


def test_released_numbers_of_rows() -> None:
    """576 rows of 32 layers, as the authors' scripts have it."""
    rows = rows_of((1, 576, 2))
    pyramid = build("pyramiddrop", tokens=270)
    assert pyramid.begin(rows) == [7, 15, 23] and list(pyramid.left.values()) == [288, 144, 72]
    fastv = build("fastv", keep=(2 + 30 / 2) / 32)
    assert fastv.begin(rows) == [1] and fastv.left == [288]
    assert build("sparsevlm", keep=0.5).begin(rows) == [2, 6, 15]
    assert build("dart", keep=0.5).begin(rows) == [1]
    assert build("holitom_inner", keep=0.9).begin(rows_of((1, 576, 2), layers=28)) == [17]


@pytest.mark.parametrize("first", [[1], [2, 3], [1, 5, 9, 11]])
@pytest.mark.parametrize("keep", [0.2, 0.35, 0.61, 0.999])
def test_numbers_of_rows_use_up_the_budget(first: list[int], keep: float) -> None:
    rows = rows_of((1, 37, 2), layers=12)

    class Any(BudgetedLayers):
        begin = keep = None

        def first(self, layers: int) -> list[int]:
            return first

    Any.__abstractmethods__ = frozenset()
    if keep * 12 <= first[0]:
        with pytest.raises(ValueError, match=r"average .*Set keep to at least 0.\d+, or drop after an earlier layer"):
            Any(keep).counts(rows)
        with pytest.raises(ValueError, match=rf"lets {first[0]} of 12 .* keep={keep} cannot be met. Set keep to more"):
            Any(keep).check(12)
        return
    Any(keep).check(12)
    counts = Any(keep).counts(rows)
    lengths = [stop - start for start, stop in zip(first, [*first[1:], 12], strict=True)]
    spare = keep * 12 * 37 - 37 * first[0] - sum(n * length for n, length in zip(counts, lengths, strict=True))
    assert -1e-6 <= spare < lengths[0] or counts[0] == 37
    assert counts[0] <= 37 and sorted(counts, reverse=True) == counts and counts[-1] >= 1


@pytest.mark.parametrize("name", layercompressors.names())
def test_a_budget_of_which_nothing_is_left(name: str) -> None:
    member, rows = build(name, tokens=1), rows_of((1, 24, 3), layers=4)
    with pytest.raises(ValueError, match="to at least"):
        member.keep(min(member.begin(rows)), rows)


def test_the_least_number_of_tokens_is_named() -> None:
    """Also for a chunk that has half of the prompt's video: 2 of 8 layers read all 24, the others 1."""
    rows = replace(rows_of((1, 24, 3), layers=8), shown=48)
    with pytest.raises(ValueError, match="Set tokens to at least 14, or drop after"):
        build("fastv", tokens=13, layer=2).begin(rows)
    build("fastv", tokens=14, layer=2).begin(rows)


@pytest.mark.parametrize(
    ("name", "settings", "said"),
    [
        ("fastv", {"layer": 0}, "ascending ones of 1 to 31"),
        ("fastv", {"layer": 32}, "ascending ones of 1 to 31"),
        ("pyramiddrop", {"at": (0.5, 0.25)}, "ascending fractions"),
        ("pyramiddrop", {"at": ()}, "ascending fractions"),
        ("sparsevlm", {"stages": (3, 2)}, "there are 3 stages"),
        ("sparsevlm", {"after": (5, 2)}, "ascending ones"),
        ("dart", {"pivots": 0}, "at least 1"),
        ("dart", {"variant": "old"}, "variant=.old.; allowed"),
        ("fastv", {"tokens": 3}, "both"),
        ("framefusion", {"similarity": 60}, "give a cosine, a fraction, and at least 1 row"),
        ("framefusion", {"variant": "old"}, "variant=.old.; allowed"),
    ],
)
def test_bad_settings(name: str, settings: dict, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        build(name, **({} if "stages" in settings else {"keep": 0.5}), **settings).check(32)


@pytest.mark.parametrize(
    ("settings", "what"),
    [
        ({"keep": 0.5, "after": []}, "at least one layer"),
        ({"stages": [-5, 2]}, "0 or more"),
        ({"stages": [9], "keep": 0.5}, "leave out keep and tokens, or stages"),
        ({"stages": [9], "tokens": 99}, "leave out keep and tokens, or stages"),
        ({}, "neither"),
    ],
)
def test_stages_of_sparsevlm_that_cannot_be(settings: dict, what: str) -> None:
    with pytest.raises(ValueError, match=what):
        build("sparsevlm", **settings)
