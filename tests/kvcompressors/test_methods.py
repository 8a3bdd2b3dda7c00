"""Each method against its literal version, and what its settings do."""

import pytest
import torch
from torch import Tensor

from langdc import compat
from langdc.conformance.prompts import FRAME, LAYERS, QUESTION, TEXT, prompt, read
from langdc.kvcompressors import build
from langdc.kvcompressors.allocators import allocators
from langdc.kvcompressors.flexreduc import FlexReduc
from langdc.kvcompressors.scorers import Scorer, scorers
from langdc.kvcompressors.temporal import shares_by_change, shares_by_distance
from langdc.types import Chunk, Plan
from tests.reference import kv as reference

CHUNK, GROUPS, HEADS, WIDTH = 24, 2, 6, 8


def noise(*shape: int, seed: int = 0) -> Tensor:
    return 2 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def chunk(start: int = 0, past: int = 0, layers: int = 1, anchor: Tensor | None = None) -> Chunk:
    """A chunk of one video, 24 tokens in 3 frames."""
    rows = slice(start, start + CHUNK)
    return Chunk(rows, 0, torch.ones(CHUNK, dtype=torch.bool), 8, anchor, past=(past,) * layers)


def alone(compressor, query: Tensor, key: Tensor, given: Chunk | None = None, length: int = 2 * CHUNK) -> list[Tensor]:
    """What a compressor keeps of one chunk, from the queries [L,h,Q,E] and keys [L,G,n,E] of its layers."""
    given = given or chunk(layers=len(query))
    compressor.begin(Plan((given,), noise(length, 4), len(query), GROUPS))
    for layer in range(len(query)):
        compressor.observe(layer, query[layer][None], key[layer][None], key[layer][None])
    return compressor.kept(given)


def keys(layers: int = 1) -> tuple[Tensor, Tensor]:
    return noise(layers, HEADS, CHUNK, WIDTH), noise(layers, GROUPS, CHUNK, WIDTH, seed=1)


@pytest.mark.parametrize(("window", "kernel", "keep"), [(4, 5, 0.5), (1, 1, 0.25), (6, 7, 0.9)])
def test_snapkv(window: int, kernel: int, keep: float) -> None:
    query, key = keys()
    found = alone(build("snapkv", keep=keep, window=window, kernel=kernel), query, key)[0]
    expected = reference.snapkv(query[0].double(), key[0].double(), window, kernel, int(keep * CHUNK))
    assert found.tolist() == expected


def test_snapkv_gives_its_window_at_most_half() -> None:
    query, key = keys()
    found = alone(build("snapkv", keep=0.25, window=100), query, key)[0]
    assert (found[:, -3:] == torch.arange(CHUNK - 3, CHUNK)).all()
    with pytest.raises(ValueError, match="kernel=4"):
        build("snapkv", keep=0.5, kernel=4)


def test_streaming() -> None:
    """A video of 6 frames in chunks of 2, with text before it."""
    compressor = build("streaming", keep=0.4, sinks=3)
    cache = read("one axis", compressor).cache
    limit = int(0.4 * 6 * FRAME)
    expected = [TEXT + row for row in reference.streaming(6 * FRAME, 2 * FRAME, 3, limit)]
    after = range(TEXT + 6 * FRAME, TEXT + 6 * FRAME + QUESTION)
    assert cache.layers[1].positions.flatten().tolist() == [*range(TEXT), *expected, *after]


def test_random_differs_by_layer_and_seed_alone() -> None:
    query, key = keys(3)
    first, again, other = (alone(build("random", keep=0.5, seed=seed), query, key) for seed in (0, 0, 1))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(first, other, strict=True))
    assert not torch.equal(first[0], first[1])


def best(scores: Tensor, count: int) -> list[int]:
    return sorted(sorted(range(len(scores)), key=lambda j: -float(scores[j]))[:count])


def test_pivotkv_keeps_what_the_chunk_attends_to() -> None:
    query, key = keys(2)
    found = alone(build("pivotkv", keep=0.3), query, key)
    for layer in range(2):
        scores = reference.received(query[layer].double(), key[layer].double(), causal=False).mean(0)
        assert float(scores.mean()) == pytest.approx(1)
        assert found[layer].tolist() == best(scores, int(0.3 * CHUNK))


@pytest.mark.parametrize("variant", ["fixed", "paper"])
def test_anchors_come_first(variant: str) -> None:
    """Five of them, ranked among themselves where there is less room."""
    query, key = keys()
    anchor = torch.zeros(CHUNK, dtype=torch.bool)
    scores = reference.received(query[0].double(), key[0].double(), causal=False).mean(0)
    worst = best(-scores, 5)
    anchor[worst] = True
    roomy = alone(build("pivotkv", keep=0.5, variant=variant), query, key, chunk(anchor=anchor))[0]
    assert set(worst) < set(roomy.tolist()) and len(roomy) == 12
    narrow = alone(build("pivotkv", keep=0.125, variant=variant), query, key, chunk(anchor=anchor))[0]
    assert narrow.tolist() == sorted(worst[i] for i in best(scores[worst], 3))
    released = alone(build("pivotkv", keep=0.125, variant="released"), query, key, chunk(anchor=anchor))[0]
    assert not anchor[released].any()


@pytest.mark.parametrize("paper", [False, True])
def test_shares_of_layers(paper: bool) -> None:
    scores = noise(4, 30).exp()
    scores[2] *= 3
    found = allocators.of({"name": "adaptive", "smoothing": "floor" if paper else "count"})(0.3, scores)
    assert found.tolist() == pytest.approx(reference.layer_shares(scores, 0.3, paper))
    assert float(found.mean()) == pytest.approx(0.3)
    assert found.argmax() == 2


@pytest.mark.parametrize("name", ["even", "pyramid", "empirical", "adaptive"])
@pytest.mark.parametrize("layers", [1, 2, 3, 28])
def test_allocators_spend_the_share_on_any_number_of_layers(name: str, layers: int) -> None:
    found = allocators.of(name)(0.2, noise(layers, 40).exp())
    assert ((found > 0) & (found <= 1)).all()
    spent = float(found.mean())
    assert spent == pytest.approx(0.2) or (name == "empirical" and abs(spent - 0.2) < (0.02 if layers == 28 else 0.15))


def test_paper_shares_of_chunks() -> None:
    chunks = [noise(3, 4, 5, seed=seed) + 2 * seed for seed in range(3)]
    expected = reference.chunk_shares([c.double() for c in chunks], 0.3)
    assert shares_by_change(0.3, chunks) == pytest.approx(expected, rel=1e-5)
    single = [chunks[0], chunks[1], chunks[2][:1]]
    assert shares_by_change(0.3, single)[2] == pytest.approx(0.3)
    still = [torch.ones(3, 4, 5)] * 2
    assert shares_by_change(0.3, still) == [0.3, 0.3]


def test_a_still_video_has_equal_shares() -> None:
    assert shares_by_distance(0.3, [torch.ones(4)] * 3) == pytest.approx([0.3] * 3, abs=1e-4)
    assert shares_by_distance(0.3, [torch.ones(4)]) == pytest.approx([0.3], abs=1e-4)


def test_flexreduc_is_guided_and_shares_by_layer() -> None:
    query, key = noise(3, HEADS, 5, WIDTH), noise(3, GROUPS, CHUNK, WIDTH, seed=1)
    key[1] *= 2
    found = alone(build("flexreduc", keep=0.3, temporal=False), query, key)
    scores = torch.stack(
        [reference.received(q.double(), k.double(), causal=False).mean(0) for q, k in zip(query, key, strict=True)]
    )
    shares = reference.layer_shares(scores, 0.3, paper=False)
    for rows, score, share in zip(found, scores, shares, strict=True):
        assert rows.tolist() == best(score, max(1, int(share * CHUNK)))


def test_flexreduc_in_the_printed_form() -> None:
    """The budget is what the text leaves, and eqs. 8-9 and 11-16 share it."""
    query, key = noise(3, HEADS, 5, WIDTH), noise(3, GROUPS, CHUNK, WIDTH, seed=1)
    chunks = tuple(
        Chunk(slice(4 + i * CHUNK, 4 + (i + 1) * CHUNK), 0, chunk().video, 8, past=(9,) * 3) for i in range(2)
    )
    embeds = noise(4 + 2 * CHUNK + 6, 5) + 1
    compressor = build("flexreduc", tokens=10 + 20, variant="paper")
    compressor.begin(Plan(chunks, embeds, 3, GROUPS))
    assert compressor.share == pytest.approx(20 / (2 * CHUNK))
    frames = embeds[4 : 4 + 2 * CHUNK].double().unflatten(0, (2, 3, 8))
    by_chunk = reference.chunk_shares(list(frames), compressor.share)
    for layer in range(3):
        compressor.observe(layer, query[layer][None], key[layer][None], key[layer][None])
    scores = torch.stack(
        [reference.received(q.double(), k.double(), causal=False).mean(0) for q, k in zip(query, key, strict=True)]
    )
    for given, share in zip(chunks, by_chunk, strict=True):
        counts = [len(rows) - 9 for rows in compressor.kept(given)]
        expected = reference.layer_shares(scores, share, paper=True)
        assert counts == [min(CHUNK, max(1, int(part * CHUNK + 1e-9))) for part in expected]
    with pytest.raises(ValueError, match="does not cover the text"):
        build("flexreduc", tokens=10, variant="paper").begin(Plan(chunks, embeds, 3, GROUPS))
    ragged = tuple(Chunk(c.rows, 0, c.video) for c in chunks)
    with pytest.raises(ValueError, match="frame by frame"):
        build("flexreduc", keep=0.3, variant="paper").begin(Plan(ragged, embeds, 3, GROUPS))


def test_lively_chunks_keep_more_and_each_video_has_its_own_budget() -> None:
    words = prompt("one axis", frames=12)
    embeds = words.embeds.clone()
    embeds[TEXT : TEXT + 4 * FRAME] = embeds[TEXT]  # four still frames
    compressor = build("flexreduc", keep=0.4)
    words = type(words)(embeds, words.positions, words.video)
    read("one axis", compressor, words)
    shares = list(compressor._shares.values())
    assert len(shares) == 6
    assert shares[0] == min(shares)
    assert sum(shares) / 6 == pytest.approx(0.4, abs=1e-4)
    numbers = torch.where(words.video, 0, -1)
    numbers[TEXT + 6 * FRAME :] = torch.where(words.video[TEXT + 6 * FRAME :], 1, -1)
    read("one axis", compressor, type(words)(embeds, words.positions, numbers), frame_tokens=[FRAME, FRAME])
    shares = list(compressor._shares.values())
    assert [sum(part) / 3 for part in (shares[:3], shares[3:])] == pytest.approx([0.4, 0.4], abs=1e-4)


def test_a_chunk_that_is_kept_whole_keeps_no_question() -> None:
    found = {}
    for defects in ((), ("saturated_question",)):
        compressor = build("flexreduc", keep=0.9, defects=defects)
        lengths = read("sections", compressor, prompt("sections", frames=12)).keys_per_layer
        whole = sum(share >= 1 for share in compressor._shares.values())
        found[bool(defects)] = lengths
    assert whole > 0
    assert all(
        with_question >= without + whole * QUESTION - 2
        for with_question, without in zip(found[1], found[0], strict=True)
    )
    assert max(found[0]) <= TEXT + 12 * FRAME + QUESTION


def test_settings_of_methods_that_do_not_exist() -> None:
    with pytest.raises(ValueError, match="'released-2026'"):
        build("flexreduc", keep=0.5, variant="new")
    with pytest.raises(ValueError, match="Unknown defects"):
        build("flexreduc", keep=0.5, defects=["all"])
    with pytest.raises(ValueError, match="'paper'"):
        build("pivotkv", keep=0.5, variant="released-2026")
    with pytest.raises(ValueError, match="'floor'"):
        allocators.of({"name": "adaptive", "smoothing": "none"})
    with pytest.raises(ValueError, match=r"beta=0\.5"):
        allocators.of({"name": "pyramid", "beta": 0.5})
    with pytest.raises(ValueError, match="max_tokens=0"):
        scorers.of({"name": "question", "max_tokens": 0})
    with pytest.raises(ValueError, match="sinks=-1"):
        build("streaming", keep=0.5, sinks=-1)


class Loudest(Scorer):
    """A scorer of someone else's."""

    def __call__(self, query: Tensor, key: Tensor) -> Tensor:
        return key[0].norm(dim=-1)


@pytest.mark.parametrize("name", ["pivotkv", "flexreduc", "snapkv"])
def test_a_scorer_of_ones_own(name: str) -> None:
    settings = {"kernel": 1} if name == "snapkv" else {}
    found = read("one axis", build(name, keep=0.5, scorer=Loudest(), **settings))
    assert sum(found.keys_per_layer) < LAYERS * (TEXT + 6 * FRAME + QUESTION)


def test_relevant_question_tokens_are_those_that_attend_more_than_average() -> None:
    query, key = noise(1, HEADS, 5, WIDTH), noise(1, GROUPS, CHUNK, WIDTH, seed=1)
    every_head = key.repeat_interleave(HEADS // GROUPS, 1)[0].double()
    attention = reference.received(every_head, query[0].double(), causal=False).mean(0)
    some = query[0][:, attention > attention.mean()]
    assert 0 < some.shape[1] < 5
    found = scorers.of({"name": "question", "relevant": True})(query, key)
    expected = reference.received(some.double(), key[0].double(), causal=False)
    torch.testing.assert_close(found.double(), expected, atol=1e-6, rtol=1e-5)


def test_settings_of_version_01_are_read_with_a_warning(caplog: pytest.LogCaptureFixture, monkeypatch) -> None:
    monkeypatch.setattr(compat, "_warned", set())
    old = build(
        "flexreduc", keep=0.5, reforge=False, scorer={"name": "question", "most": 7}, defects=["saturated_guide"]
    )
    assert isinstance(old, FlexReduc)
    assert (old.compact_positions, old.question_window, old.defects) == (False, 7, {"saturated_question"})
    assert {"'reforge'", "'most'", "'saturated_guide'"} <= {line.split(" is ")[0] for line in caplog.messages}
    with pytest.raises(ValueError, match="no setting 'reforge_'"):
        build("flexreduc", keep=0.5, reforge_=False)
