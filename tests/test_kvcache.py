"""The cache: layers of different lengths, time lines of their own, and memory that is really given back."""

import pytest
import torch
from torch import Tensor

from langdc import kvcache
from langdc.conformance.prompts import small
from langdc.kvcache import KVCache
from langdc.rope import Rope

GROUPS, WIDTH = 2, 16


def noise(n: int, seed: int = 0) -> Tensor:
    return torch.randn(1, GROUPS, n, WIDTH, generator=torch.Generator().manual_seed(seed))


def filled(n: int = 10, layers: int = 2, axes: int = 1) -> tuple[KVCache, list[Tensor]]:
    """A cache with n keys in each layer, at positions 0 to n-1."""
    rotary = small("one axis" if axes == 1 else "sections").text_model.rotary_emb
    cache = KVCache(layers, Rope(rotary))
    cache.announce(torch.arange(n).expand(axes, 1, n))
    keys = [noise(n, layer) for layer in range(layers)]
    for layer, key in enumerate(keys):
        cache.update(key, key + 1, layer)
    return cache, keys


def test_layers_keep_different_rows() -> None:
    cache, keys = filled()
    cache.keep(0, torch.tensor([0, 3, 9]))
    cache.keep(1, torch.arange(1, 8))
    assert cache.lengths == (3, 7)
    assert torch.equal(cache.layers[0].keys, keys[0][:, :, [0, 3, 9]])
    assert torch.equal(cache.layers[0].values, keys[0][:, :, [0, 3, 9]] + 1)
    assert cache.layers[0].positions.flatten().tolist() == [0, 3, 9]


def test_key_heads_may_keep_different_rows() -> None:
    cache, keys = filled()
    rows = torch.tensor([[0, 1], [4, 9]])
    cache.keep(0, rows)
    for head in range(GROUPS):
        assert torch.equal(cache.layers[0].keys[:, head], keys[0][:, head, rows[head]])
    assert cache.layers[0].positions.tolist() == [rows.tolist()]
    cache.announce(torch.tensor([[[10]]]))
    cache.update(noise(1), noise(1), 0)
    assert cache.layers[0].positions.tolist() == [[[0, 1, 10], [4, 9, 10]]]


@pytest.mark.parametrize("rows", [torch.arange(5), torch.arange(5, 10), torch.arange(0, 10, 2)])
def test_dropped_keys_are_freed(rows: Tensor) -> None:
    """Room for more is counted until it is freed; then no view holds on to the rest, also of a slice."""
    cache, _ = filled(layers=1)
    before, keys = cache.held_bytes, cache.layers[0].keys[:, :, rows].clone()
    assert before == 2 * GROUPS * 10 * WIDTH * 4
    cache.keep(0, rows)
    assert cache.held_bytes == before
    cache.fit()
    assert cache.held_bytes == before // 2
    assert torch.equal(cache.layers[0].keys, keys) and torch.equal(cache.layers[0].values, keys + 1)
    layer = cache.layers[0]
    for kept in (layer.keys, layer.values):
        assert kept.untyped_storage().nbytes() == kept.numel() * 4


def test_kept_keys_move_to_new_positions() -> None:
    cache, keys = filled(axes=3, layers=1)
    new = cache.layers[0].positions.clone()
    new[0, 0, 4:] -= 2
    cache.keep(0, torch.tensor([1, 5, 8]), new)
    delta = torch.zeros(3, 1, 3, dtype=torch.long)
    delta[0, 0, 1:] = -2
    assert torch.equal(cache.layers[0].keys, cache.rope.rerotate(keys[0][:, :, [1, 5, 8]], delta))
    assert cache.layers[0].positions[:, 0].tolist() == [[1, 3, 6], [1, 5, 8], [1, 5, 8]]


def test_nothing_is_copied_where_all_stays() -> None:
    cache, _ = filled(layers=1)
    before = cache.layers[0].keys
    cache.keep(0, torch.arange(10))
    assert cache.layers[0].keys is before


def test_what_comes_next_goes_on_right_after_the_last_key() -> None:
    cache, _ = filled(axes=3)
    cache.keep(0, torch.tensor([0, 3]))
    coming = torch.tensor([10, 11]).expand(3, 1, 2)
    cache.announce(coming, continuous=True)
    new = noise(2, 5)
    for layer in range(2):
        cache.update(new, new, layer)
    assert cache.layers[0].positions[:, 0].tolist() == [[0, 3, 4, 5], [0, 3, 10, 11], [0, 3, 10, 11]]
    assert cache.layers[1].positions[0, 0].tolist() == list(range(12))
    moved = cache.rope.rerotate(new, torch.tensor([-6, 0, 0])[:, None, None])
    assert torch.equal(cache.layers[0].keys[:, :, 2:], moved)
    assert torch.equal(cache.layers[1].keys[:, :, 10:], new)
    assert torch.equal(cache.apply_offset(0, new), moved)


def test_all_axes_may_follow() -> None:
    cache, _ = filled(axes=3)
    cache.keep(0, torch.tensor([0, 3]))
    cache.announce(torch.full((3, 1, 1), 10), continuous=True, axes=3)
    cache.update(noise(1), noise(1), 0)
    assert cache.layers[0].positions[:, 0, -1].tolist() == [4, 4, 4]


def test_settling_moves_the_past_instead() -> None:
    """Scores between new queries and old keys are the same, whether the new or the old ones move."""
    moving, settled = filled(axes=3)[0], filled(axes=3)[0]
    query, at = noise(1, 7), torch.full((3, 1, 1), 10)
    for cache in (moving, settled):
        cache.keep(0, torch.tensor([0, 3]))
    moving.announce(at, continuous=True)
    settled.close_gaps(10)
    settled.announce(at)
    assert settled.layers[0].positions[0, 0].tolist() == [6, 9]
    assert settled.layers[0].positions[1, 0].tolist() == [0, 3]
    torch.testing.assert_close(
        moving.apply_offset(0, query) @ moving.layers[0].keys.transpose(2, 3),
        settled.apply_offset(0, query) @ settled.layers[0].keys.transpose(2, 3),
        atol=1e-4, rtol=1e-4,
    )  # fmt: skip


def test_cropping_crops_positions() -> None:
    cache, keys = filled(layers=1)
    cache.crop(-3)
    assert cache.lengths == (7,)
    assert cache.layers[0].positions.shape == (1, 1, 7)
    cache.announce(torch.tensor([[[20]]]))
    cache.update(noise(1, 5), noise(1, 5), 0)
    assert torch.equal(cache.layers[0].keys, torch.cat([keys[0][:, :, :7], noise(1, 5)], 2))
    assert cache.layers[0].positions.flatten().tolist() == [*range(7), 20]


def test_a_layer_grows_by_blocks() -> None:
    """Most tokens are written where there is room: the tensors stay what they are."""
    cache, keys = filled(layers=1)
    places = set()
    for time in range(10, 300):
        cache.announce(torch.tensor([[[time]]]))
        cache.update(noise(1, time), noise(1, time), 0)
        places.add(cache.layers[0].keys.data_ptr())
    assert len(places) == 2
    assert torch.equal(cache.layers[0].keys, torch.cat([*keys, *(noise(1, time) for time in range(10, 300))], 2))
    assert cache.layers[0].positions.flatten().tolist() == list(range(300))


def test_a_known_length_is_held_once() -> None:
    cache = KVCache(1, Rope(small("one axis").text_model.rotary_emb), room=12)
    for start in range(0, 12, 3):
        cache.announce(torch.arange(start, start + 3)[None, None])
        cache.update(noise(3, start), noise(3, start), 0)
        assert cache.held_bytes == 2 * GROUPS * 12 * WIDTH * 4


def test_what_was_read_in_inference_mode_goes_on_outside() -> None:
    with torch.inference_mode():
        cache, keys = filled(layers=1)
        cache.keep(0, torch.arange(3, 10))
    cache.announce(torch.tensor([[[10]]]))
    found, _ = cache.update(noise(1, 5), noise(1, 5), 0)
    assert torch.equal(found, torch.cat([keys[0][:, :, 3:], noise(1, 5)], 2))


def test_rows_of_a_batch_may_be_repeated() -> None:
    """As transformers does for several replies."""
    cache, keys = filled(layers=1)
    cache.batch_repeat_interleave(2)
    cache.announce(torch.tensor([[[10]]]))
    new = torch.cat([noise(1, 5), noise(1, 6)])
    found, _ = cache.update(new, new, 0)
    assert torch.equal(found, torch.cat([keys[0].expand(2, -1, -1, -1), new], 2))


@pytest.mark.parametrize("start", [0, 2])
def test_moving_in_blocks_equals_moving_at_once(start: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = torch.tensor([[0, 1, 4, 5, 6, 8, 9], [0, 1, 2, 3, 7, 8, 9]])
    once, parts = filled(layers=1)[0], filled(layers=1)[0]
    new = once.layers[0].positions - (torch.arange(10) > 3).long()
    once.keep(0, rows, new)
    monkeypatch.setattr(kvcache, "_BLOCK", 2)
    parts.keep(0, rows, new, start)
    for name in ("keys", "values", "positions"):
        assert torch.equal(getattr(once.layers[0], name), getattr(parts.layers[0], name))
