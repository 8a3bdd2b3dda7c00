"""Causal attention over caches of any length, and attention received by keys, against plain formulas."""

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from benchmarks.memory import most_live_bytes
from langdc import attention, devices
from langdc.attention import NAME, _attend, _causal_attention, causal_rows, received_attention, using
from langdc.conformance.prompts import plain, prompt, small
from tests import tiny
from tests.reference.kv import received


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def naive(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    """Attention with the whole matrix; the mask is aligned to the end."""
    repeats = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(repeats, 1), value.repeat_interleave(repeats, 1)
    scores = query @ key.transpose(2, 3) * scale
    mask = torch.ones(scores.shape[-2:], device=scores.device).tril(key.shape[2] - query.shape[2]).bool()
    return scores.masked_fill(~mask, float("-inf")).softmax(-1) @ value


@pytest.mark.parametrize(("queries", "keys"), [(1, 9), (9, 9), (4, 9), (7, 30), (13, 14)])
@pytest.mark.parametrize("groups", [4, 2])
def test_causal_attention_is_aligned_to_the_end(queries, keys, groups, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "_MASK_BLOCK", 3)
    query, key, value = noise(1, 4, queries, 8), noise(1, groups, keys, 8, seed=1), noise(1, groups, keys, 8, seed=2)
    found = _causal_attention(query, key, value, 0.3)
    torch.testing.assert_close(found, naive(query, key, value, 0.3), atol=1e-6, rtol=1e-5)


def test_the_flash_path_takes_and_gives_its_layout(monkeypatch: pytest.MonkeyPatch) -> None:
    """Through a stand-in of flash-attn's signature; the kernel itself needs an accelerator."""

    def stand_in(query: Tensor, key: Tensor, value: Tensor, softmax_scale: float, causal: bool) -> Tensor:
        assert causal
        turned = [states.transpose(1, 2).float() for states in (query, key, value)]
        return naive(*turned, softmax_scale).transpose(1, 2).to(query.dtype)

    monkeypatch.setattr(attention, "_flash_kernel", lambda: stand_in)
    monkeypatch.setattr(attention, "_FLASH_DEVICES", ("cpu",))
    monkeypatch.setattr(attention, "_sdpa", None)
    query, key, value = (noise(1, n, m, 8, seed=n).bfloat16() for n, m in ((4, 5), (2, 9), (2, 9)))
    found = _causal_attention(query, key, value, 0.3)
    assert found.shape == query.shape
    expected = naive(query.float(), key.float(), value.float(), 0.3)
    torch.testing.assert_close(found.float(), expected, atol=2e-2, rtol=2e-2)


@pytest.mark.gpu
@pytest.mark.parametrize("width", [64, 80, 128])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_on_a_gpu_the_error_is_that_of_the_precision(dtype: torch.dtype, width: int) -> None:
    query, key, value = noise(1, 4, 70, width), noise(1, 2, 200, width, seed=1), noise(1, 2, 200, width, seed=2)
    exact = naive(query, key, value, 0.125)
    low = [states.cuda().to(dtype) for states in (query, key, value)]
    error = (_causal_attention(*low, 0.125).cpu().float() - exact).abs().max()
    assert error <= 2 * (naive(*low, 0.125).cpu().float() - exact).abs().max() + 1e-5


def test_on_a_card_grouped_keys_reach_the_flash_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """In half precision, as torch says; other types in blocks of queries."""
    monkeypatch.setattr(attention.cuda, "SDPAParams", lambda *given: given)
    monkeypatch.setattr(attention.cuda, "can_use_flash_attention", lambda given: given[0].dtype == torch.bfloat16)
    called = []
    monkeypatch.setattr(attention, "_blocks", lambda *given: called.append("blocks") or given[0])
    with FakeTensorMode(), torch.device("cuda"):
        for dtype in (torch.bfloat16, torch.float32):
            query, key = torch.empty(1, 28, 70, 80, dtype=dtype), torch.empty(1, 4, 200, 80, dtype=dtype)
            assert _causal_attention(query, key, key).shape == query.shape
            called.append(str(dtype))
    assert called == ["torch.bfloat16", "blocks", "torch.float32"]


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("block_bytes", [1, 200, 1 << 22])
def test_received_attention(monkeypatch, causal: bool, block_bytes: int) -> None:
    monkeypatch.setitem(devices._BLOCK_BYTES, "cpu", block_bytes)
    query, key = noise(1, 6, 5, 8), noise(1, 3, 11, 8, seed=1)
    found = received_attention(query, key, causal=causal)
    expected = received(query[0].double(), key[0].double(), causal)
    torch.testing.assert_close(found.double(), expected, atol=1e-6, rtol=1e-5)
    if not causal:
        asking = torch.tensor([True, False, True, True, False])
        found, expected = received_attention(query, key, asking=asking), received_attention(query[:, :, asking], key)
        torch.testing.assert_close(found, expected)


def test_scores_exist_a_block_at_a_time(monkeypatch) -> None:
    """Beside copies of the inputs, a block of 64 KiB is all there is of the 28 x 512 x 512 weights."""
    monkeypatch.setitem(devices._BLOCK_BYTES, "cpu", 1 << 16)
    query, key = noise(1, 28, 512, 16), noise(1, 4, 512, 16, seed=1)
    peak = most_live_bytes(lambda: received_attention(query, key))
    whole = 28 * 512 * 512 * 4
    assert peak < whole / 8, f"{peak} of {whole}"


def test_a_model_attends_our_way_only_inside() -> None:
    model, other = small("one axis"), small("sections")
    before = model.text_model.config._attn_implementation
    with using(model.text_model):
        assert model.text_model.config._attn_implementation == NAME
        assert other.text_model.config._attn_implementation != NAME
        inside = plain("one axis")
    assert model.text_model.config._attn_implementation == before
    torch.testing.assert_close(inside, plain("one axis"), atol=1e-4, rtol=1e-4)
    with pytest.raises(RuntimeError), using(model.text_model):
        raise RuntimeError
    assert model.text_model.config._attn_implementation == before


def test_sliding_windows_are_refused() -> None:
    states = noise(1, 2, 6, 4)
    layer = SimpleNamespace(layer_idx=1)
    with pytest.raises(ValueError, match="sliding window of 4"):
        _attend(layer, states, states, states, None, sliding_window=4)
    _attend(layer, states, states, states, None, sliding_window=6)
    assert len(prompt("one axis").embeds) > 6


def test_rows_padded_on_the_right_need_no_mask() -> None:
    """As transformers masks them, exactly at real positions; a sliding window or other kernels are left alone."""
    torch.manual_seed(0)
    model = tiny.captioner().language_model.model
    embeds, mask = torch.randn(3, 9, 32), (torch.arange(9) < torch.tensor([[9], [5], [1]])).long()
    arguments = {"inputs_embeds": embeds, "attention_mask": mask, "position_ids": torch.arange(9).expand(3, -1)}
    expected = model(**arguments, use_cache=False).last_hidden_state
    with causal_rows(model.config, 9):
        found = model(**arguments, use_cache=False).last_hidden_state
    torch.testing.assert_close(found[mask.bool()], expected[mask.bool()], rtol=1e-6, atol=1e-6)
    assert model.config._attn_implementation == "sdpa"
    for kernel, window in (("eager", None), ("sdpa", 8)):
        model.config._attn_implementation, model.config.sliding_window = kernel, window
        with causal_rows(model.config, 9):
            assert model.config._attn_implementation == kernel
