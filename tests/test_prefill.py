"""Reading in chunks: the pieces, what compressors are shown, and the plain model where nothing is dropped."""

from copy import deepcopy
from dataclasses import replace
from typing import ClassVar

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from langdc import attention, devices, kvcache
from langdc.chunks import chunks_of, tokens_per_chunk
from langdc.conformance.prompts import (
    FRAME,
    FRAMES,
    HEADS,
    KEY_HEADS,
    KINDS,
    LAYERS,
    MODELS,
    QUESTION,
    TEXT,
    WIDTH,
    plain,
    prompt,
    read,
    small,
)  # fmt: skip
from langdc.interfaces import KVCompressor
from langdc.kvcompressors import build
from langdc.prefill import _ChunkedPrefill, prefill
from langdc.rope import Rope
from langdc.types import Chunk, Plan


class Everything(KVCompressor):
    """Keeps everything and writes down what it was shown."""

    def begin(self, plan: Plan) -> None:
        self.plan, self.seen, self.chunks = plan, [], []

    def observe(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> None:
        self.seen.append((layer, query, key, value))

    def kept(self, chunk: Chunk) -> list[Tensor]:
        self.chunks.append(chunk)
        return [torch.arange(past + len(chunk)) for past in chunk.past]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("chunk", [None, 1, 7, 16, 1000])
def test_chunks_change_nothing_where_nothing_is_dropped(kind: str, chunk: int | None) -> None:
    found = read(kind, chunk_tokens=chunk)
    torch.testing.assert_close(found.logits, plain(kind), atol=1e-4, rtol=1e-4)
    assert found.keys_per_layer == [len(prompt(kind).embeds)] * LAYERS


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("window", [0, 3, 1 << 30])
def test_a_question_window_leaves_no_trace(kind: str, window: int) -> None:
    watcher = Everything()
    watcher.question_window = window
    found = read(kind, watcher)
    torch.testing.assert_close(found.logits, plain(kind), atol=1e-4, rtol=1e-4)
    assert found.keys_per_layer == [len(prompt(kind).embeds)] * LAYERS
    assert {chunk.question_window for chunk in watcher.chunks} == {min(window, QUESTION)}


def test_what_a_compressor_is_shown() -> None:
    watcher = Everything()
    watcher.question_window = 3
    read("sections", watcher)
    assert [layer for layer, *_ in watcher.seen] == list(range(LAYERS)) * 3
    for _, query, key, value in watcher.seen:
        assert query.shape == (1, HEADS, 3, WIDTH // HEADS)
        assert key.shape == value.shape == (1, KEY_HEADS, 2 * FRAME, WIDTH // HEADS)
    assert [chunk.past for chunk in watcher.chunks] == [(TEXT + 16 * i,) * LAYERS for i in range(3)]
    assert (watcher.plan.layers, watcher.plan.key_heads) == (LAYERS, KEY_HEADS)
    assert {chunk.frame_tokens for chunk in watcher.plan.chunks} == {FRAME}


def test_without_positions_the_projections_are_shown() -> None:
    turned, bare = Everything(), Everything()
    bare.position_free = True
    for watcher in (turned, bare):
        read("interleaved", watcher)
    rope, positions = Rope(small("interleaved").text_model.rotary_emb), prompt("interleaved").positions
    for number, ((_, query, key, _), (_, bare_query, bare_key, _)) in enumerate(
        zip(turned.seen, bare.seen, strict=True)
    ):
        start = TEXT + 2 * FRAME * (number // LAYERS)
        stands = positions[..., start : start + 2 * FRAME]
        back = rope.angles(-stands, rope.scaling**2)
        torch.testing.assert_close(bare_query, rope.turn(query, *back), atol=1e-5, rtol=0)
        torch.testing.assert_close(bare_key, rope.turn(key, *back), atol=1e-5, rtol=0)


def test_a_guide_stands_right_after_its_chunk() -> None:
    """In time; other axes move along."""
    words = prompt("sections")
    chunk = replace(next(iter(chunks_of(words.video, 2 * FRAME))), question_window=QUESTION)
    found = Everything().question_positions(chunk, words.positions)
    last = words.positions[0, 0, chunk.rows.stop - 1]
    assert torch.equal(
        found - found[:, :, :1], words.positions[:, :, -QUESTION:] - words.positions[:, :, -QUESTION:][..., :1]
    )
    assert found[0, 0, 0] == last + 1
    assert found[1, 0, 0] - found[0, 0, 0] == words.positions[1, 0, -1] - words.positions[0, 0, -1]


def slices(video: list[int] | list[bool], *sizes) -> list[tuple[int, int]]:
    return [(c.rows.start, c.rows.stop) for c in chunks_of(torch.tensor(video), *sizes)]


def test_runs_of_video_are_cut() -> None:
    video = [False] * 2 + [True] * 5 + [False] + [True] * 3
    assert slices(video, 2) == [(2, 4), (4, 6), (6, 7), (8, 10), (10, 11)]
    assert slices(video, None) == [(2, 7), (8, 11)]
    assert slices(video, [5, 3]) == [(2, 7), (8, 11)]
    assert slices([False] * 4, 2) == []
    assert [c.video_id for c in chunks_of(torch.tensor(video))] == [0, 1]


def test_videos_are_read_in_the_order_of_the_prompt() -> None:
    found = list(chunks_of(torch.tensor([1, 1, -1, 0, 0]), [2, 1]))
    assert [(c.video_id, c.rows.start) for c in found] == [(1, 0), (0, 3), (0, 4)]
    with pytest.raises(ValueError, match="Video 0 begins within video 1"):
        list(chunks_of(torch.tensor([1, -1, 0, 1])))


def test_text_between_frames_goes_with_the_frame_after_it() -> None:
    """As in prompts that tell the time of each frame."""
    video = [-1, 0, 0, -1, 0, 0, -1, 0, 0, -1, -1, 1, 1]
    found = list(chunks_of(torch.tensor(video), 4))
    assert [(c.rows.start, c.rows.stop) for c in found] == [(1, 6), (6, 9), (11, 13)]
    assert found[0].video.tolist() == [True, True, False, True, True]
    assert found[1].video.tolist() == [False, True, True]


@pytest.mark.parametrize("name", ["pivotkv", "flexreduc", "snapkv", "random", "streaming"])
def test_text_between_frames_is_never_dropped(name: str) -> None:
    words = prompt("one axis", frames=8)
    numbers = torch.where(words.video, 0, -1)
    stamps = torch.arange(TEXT, TEXT + 64, 16)  # the first token of every second frame is its time, say
    numbers[stamps] = -1
    compressor = build(name, keep=0.3)
    chunks = []
    inner = compressor.kept
    compressor.kept = lambda chunk: chunks.append((chunk, inner(chunk))) or chunks[-1][1]
    read("one axis", compressor, replace(words, video=numbers), chunk_tokens=15, frame_tokens=None)
    assert len(chunks) == 4
    for number, (chunk, rows) in enumerate(chunks):
        text = set((~chunk.video).nonzero()[:, 0].tolist())
        assert len(text) == (number > 0)
        for of_layer, past in zip(rows, chunk.past, strict=True):
            for head in of_layer.reshape(-1, of_layer.shape[-1]):
                assert text <= set((head - past).tolist())


def test_side_features_follow_their_rows() -> None:
    """`arguments` is asked for the rows of each piece, the question window's included."""
    words, model, asked = prompt("one axis"), small("one axis"), []
    watcher = Everything()
    watcher.question_window = 2

    def arguments(rows: Tensor) -> dict:
        asked.append(rows.tolist())
        return {}

    prefill(
        model.text_model, model.lm_head, words.embeds, words.positions, words.video, watcher,
        chunk_tokens=FRAMES * FRAME, arguments=arguments,
    )  # fmt: skip
    length, end = len(words.embeds), TEXT + FRAMES * FRAME
    assert asked == [list(range(TEXT)), [*range(TEXT, end), length - 2, length - 1], list(range(end, length))]


def test_two_models_with_different_compressors_side_by_side() -> None:
    alone = [
        read("one axis", build("pivotkv", keep=0.5)).logits,
        read("sections", build("flexreduc", keep=0.25)).logits,
    ]
    first, second = build("pivotkv", keep=0.5), build("flexreduc", keep=0.25)
    for _ in range(2):
        together = [read("one axis", first).logits, read("sections", second).logits]
        assert all(torch.equal(a, b) for a, b in zip(alone, together, strict=True))
    assert small("one axis").text_model.config._attn_implementation != "langdc"


def test_a_prompt_that_ends_with_a_video() -> None:
    words = prompt("sections", question=0)
    found = read("sections", build("pivotkv", keep=0.5), words)
    assert found.keys_per_layer == [TEXT + FRAMES * FRAME // 2] * LAYERS
    assert found.next_position.flatten().tolist() == [int(words.positions.max()) + 1] * 3
    torch.testing.assert_close(read("sections", None, words).logits, plain("sections", words), atol=1e-4, rtol=1e-4)


def test_no_video_at_all() -> None:
    words = prompt("one axis", frames=0)
    found = read("one axis", build("flexreduc", tokens=4), words)
    torch.testing.assert_close(found.logits, plain("one axis", words), atol=1e-4, rtol=1e-4)


def test_chunk_sizes() -> None:
    assert tokens_per_chunk(32, 64, 64 * 196) == 32 * 196
    assert tokens_per_chunk(32, 8, 8 * 196 + 1) == 8 * 196 + 1
    assert tokens_per_chunk(3, 8, 2) == 1
    with pytest.raises(ValueError, match="chunk_frames=0"):
        tokens_per_chunk(0, 8, 8)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"embeds": torch.zeros(2, 60, WIDTH)}, "one prompt at a time"),
        ({"embeds": torch.full((60, WIDTH), torch.nan)}, "NaN"),
        ({"positions": torch.zeros(1, 60)}, r"\[A,1,M\]"),
        ({"positions": torch.zeros(1, 1, 59)}, r"\[A,1,M\]"),
        ({"video": torch.zeros(59, dtype=torch.bool)}, "60 tokens"),
    ],
)
def test_bad_input(change: dict, said: str) -> None:
    assert len(prompt("one axis").embeds) == 60
    with pytest.raises(ValueError, match=said):
        read("one axis", words=replace(prompt("one axis"), **change))


def test_sizes_for_another_number_of_videos() -> None:
    with pytest.raises(ValueError, match="2 sizes were given for 1 videos"):
        read("one axis", chunk_tokens=[4, 4])
    with pytest.raises(ValueError, match="at least one"):
        read("one axis", chunk_tokens=0)


class _Work(TorchDispatchMode):
    """Notes the largest result of an operation, what waits for the device, and elements of keys and values copied."""

    waiting: ClassVar = {
        "_local_scalar_dense",
        "nonzero",
        "masked_select",
        "_unique2",
        "bincount",
        "equal",
        "is_nonzero",
    }
    copying: ClassVar = {"cat", "copy_", "clone", "index_select", "gather", "_to_copy", "index"}

    def __init__(self) -> None:
        super().__init__()
        self.largest, self.copied, self.waits, self.names = 0, 0, [], []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        name = func.__name__.partition(".")[0]
        results = [leaf for leaf in tree_leaves(found) if isinstance(leaf, Tensor)]
        self.names.append(name)
        self.largest = max(self.largest, *(one.untyped_storage().nbytes() // one.element_size() for one in results), 0)
        # masks of chunks are on the CPU
        if name in self.waiting and not (name == "nonzero" and args[0].dtype == torch.bool):
            self.waits.append(name)
        if name in self.copying:
            self.copied += sum(one.numel() for one in results if one.ndim == 4 and one.shape[-1] == WIDTH // HEADS)
        return found


@pytest.mark.parametrize("name", [None, "flexreduc", "pivotkv", "snapkv", "streaming"])
def test_reading_makes_no_tensor_of_queries_by_keys(name: str | None, monkeypatch) -> None:
    """Chunks of 1,600 tokens: all tensors are smaller than the queries of one chunk times its own keys alone."""
    monkeypatch.setitem(devices._BLOCK_BYTES, "cpu", 1 << 18)
    small("sections")
    words, tokens = prompt("sections", frames=600), 200 * FRAME
    with _Work() as work:
        found = read("sections", name and build(name, keep=0.25), words, chunk_tokens=tokens)
    assert work.largest < tokens**2 / 4
    assert found.cache.held_bytes == 2 * 4 * WIDTH // HEADS * KEY_HEADS * sum(found.keys_per_layer)


@pytest.mark.parametrize(("name", "keep"), [(None, 1), ("flexreduc", 0.75), ("pivotkv", 0.75), ("snapkv", 0.75)])
def test_reading_a_chunk_copies_what_is_new(name: str | None, keep: float, monkeypatch) -> None:
    """Never the cache as a whole: twenty chunks copy ten times what two copy. Growing is amortised, see the cache."""
    monkeypatch.setattr(kvcache, "_ROOM", 1 << 10)
    small("sections")

    def copied(chunks: int) -> int:
        words = prompt("sections", frames=2 * chunks)
        with _Work() as work:
            read("sections", name and build(name, keep=keep, **OTHERS.get(name, {})), words)
        return work.copied

    first, few, many = copied(1), copied(3), copied(21)
    assert many - first == pytest.approx(10 * (few - first), rel=0.05)


OTHERS = {"flexreduc": {"allocator": "even", "temporal": False}}


@pytest.mark.parametrize(
    ("name", "settings", "per_chunk"),
    [
        ("flexreduc", {}, 1),  # each layer's number of keys depends on scores
        ("flexreduc", {"allocator": "even"}, 0),
        ("flexreduc", {"scorer": {"name": "question", "relevant": True}}, 1),
        ("pivotkv", {}, 0),
        ("snapkv", {}, 0),
        ("random", {}, 0),
        ("streaming", {}, 0),
    ],
)
def test_chunks_wait_for_the_device_at_most_once(name: str, settings: dict, per_chunk: int, monkeypatch) -> None:
    """After their last layer; what waits for a whole prompt does not grow with its chunks."""
    small("sections")
    moved = []
    monkeypatch.setattr(Tensor, "cpu", lambda self, inner=Tensor.cpu: moved.append(self) or inner(self))

    def waits(chunks: int) -> tuple[int, int]:
        compressor, words = build(name, keep=0.5, **settings), prompt("sections", frames=2 * chunks)
        begin = compressor.begin
        with _Work() as work:
            compressor.begin = lambda plan: (begin(plan), work.waits.clear(), moved.clear())
            read("sections", compressor, words)
        return len(work.waits), len([one for one in moved if one.dtype != torch.bool])

    few, many = waits(3), waits(9)
    assert many == (few[0], few[1] + 6 * per_chunk)


def test_on_a_card_a_chunk_reaches_flash_and_waits_for_nothing(monkeypatch) -> None:
    """With tensors that say they are on a card and hold nothing, so that waiting for a value is an error."""
    monkeypatch.setattr(attention, "_has_flash", lambda *_: True)
    model, config = MODELS["sections"]
    given = small("sections").text_model.config.to_dict()
    compressor = build("flexreduc", keep=0.5)
    with FakeTensorMode(), torch.no_grad(), torch.device("cuda"):
        text_model = model(config(**given)).eval()
        length, chunk = TEXT + 800 + QUESTION, 400
        embeds = torch.empty(length, WIDTH)
        reader = _ChunkedPrefill(text_model, embeds, torch.arange(length).expand(3, 1, -1), None)
        reader.compressor, compressor._scores = compressor, []
        with attention.using(text_model), _Work() as work:
            reader._forward(reader._rows(0, TEXT))
            for start in (TEXT, TEXT + chunk):
                rows = slice(start, start + chunk)
                reader._chunk = Chunk(
                    rows, 0, torch.empty(0, device="cpu"), FRAME, None, QUESTION, reader.cache.lengths
                )
                asked = torch.cat([reader._rows(start, start + chunk), reader._rows(length - QUESTION, length)])
                reader._forward(asked, None, chunk - 1)
    assert work.names.count("_scaled_dot_product_flash_attention") == 2 * LAYERS
    assert not work.waits and work.largest < chunk**2 / 2
    assert [scores.shape for scores in compressor._scores] == [(KEY_HEADS, chunk)] * LAYERS


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", ["flexreduc", "pivotkv", "snapkv", "streaming"])
def test_on_a_gpu_the_same_keys_stay(name: str) -> None:
    words, model = prompt("sections", frames=12), small("sections")
    expected = read("sections", build(name, keep=0.5), words)
    on_card = type(words)(words.embeds.cuda(), words.positions.cuda(), words.video.cuda())
    moved = type(model)(deepcopy(model.text_model).cuda(), deepcopy(model.lm_head).cuda())
    found = read("sections", build(name, keep=0.5), on_card, moved)
    torch.testing.assert_close(found.logits.cpu(), expected.logits, atol=1e-3, rtol=1e-3)
    for rows, expected_rows in zip(found.kept_rows, expected.kept_rows, strict=True):
        assert torch.equal(rows.cpu(), expected_rows)
    low = type(model)(moved.text_model.bfloat16(), moved.lm_head.bfloat16())
    half = read("sections", build(name, keep=0.5), replace(on_card, embeds=on_card.embeds.bfloat16()), low)
    assert torch.isfinite(half.logits).all()
    assert sum(half.keys_per_layer) == pytest.approx(sum(found.keys_per_layer), rel=0.05)
