"""What the design rests on in transformers and torch, one test per fact, on tiny random models.

When one fails after an upgrade, the docstring says which assumption went; docs/architecture.md says who relies on it.
Letters: M sequence length, B batch, L layers, h query heads, G key heads, E head width, K keys cached.
"""

from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate.utils import send_to_device
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.attention.bias import causal_lower_right
from transformers import AttentionInterface, DynamicCache, Qwen2Config, Qwen2ForCausalLM, Trainer, TrainingArguments
from transformers.masking_utils import AttentionMaskInterface
from transformers.modeling_flash_attention_utils import _is_packed_sequence
from transformers.models.qwen2.modeling_qwen2 import Qwen2RotaryEmbedding, apply_rotary_pos_emb
from transformers.models.qwen2_5_vl import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration
from transformers.models.qwen2_vl import Qwen2VLConfig, Qwen2VLForConditionalGeneration
from transformers.models.qwen3_vl import Qwen3VLConfig, Qwen3VLForConditionalGeneration

TEXT = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
MROPE = {"rope_type": "default", "mrope_section": [2, 1, 1], "rope_theta": 1e4}
VIDEO_ID = 60
SPECIAL = {"image_token_id": 59, "video_token_id": VIDEO_ID, "vision_start_token_id": 61, "vision_end_token_id": 62}
OURS = "facts_observed"


@dataclass
class Seen:
    """What an attention function was given, one entry per call."""

    queries: list[Tensor]
    keys: list[Tensor]
    masks: list[Tensor | None]
    names: set[str]


def observed_attention(module, query, key, value, attention_mask, observer: Seen | None = None, **kwargs):
    """Causal attention aligned to the end of this layer's own keys; tells `observer` what it got."""
    if observer is not None:
        observer.queries.append(query)
        observer.keys.append(key)
        observer.masks.append(attention_mask)
        observer.names |= kwargs.keys()
    bias = causal_lower_right(query.shape[2], key.shape[2])
    out = nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=bias, enable_gqa=True)
    return out.transpose(1, 2), None


@pytest.fixture(autouse=True, scope="module")
def registered():
    AttentionInterface.register(OURS, observed_attention)


def qwen2(attention: str = "sdpa", **changes) -> Qwen2ForCausalLM:
    torch.manual_seed(0)
    model = Qwen2ForCausalLM(Qwen2Config(**{**TEXT, **changes})).eval()
    model.set_attn_implementation(attention)
    return model


def vision_language(kind: str, attention: str = "sdpa"):
    torch.manual_seed(0)
    text = {**TEXT, "rope_scaling": MROPE, "rope_parameters": MROPE, "head_dim": 8}
    sizes = {"patch_size": 4, "spatial_merge_size": 2, "temporal_patch_size": 2}
    sizes |= {"in_channels": 3, "depth": 2, "num_heads": 2}
    if kind == "qwen2_vl":
        vision = dict(sizes, embed_dim=16, hidden_size=32, mlp_ratio=2)
        model = Qwen2VLForConditionalGeneration(Qwen2VLConfig(text_config=text, vision_config=vision, **SPECIAL))
    elif kind == "qwen2_5_vl":
        vision = dict(sizes, hidden_size=16, out_hidden_size=32, intermediate_size=24, window_size=16)
        vision |= {"fullatt_block_indexes": [1], "tokens_per_second": 2}
        model = Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(text_config=text, vision_config=vision, **SPECIAL))
    else:
        vision = dict(sizes, hidden_size=16, out_hidden_size=32, intermediate_size=24, num_position_embeddings=16)
        vision |= {"deepstack_visual_indexes": [0, 1]}
        model = Qwen3VLForConditionalGeneration(Qwen3VLConfig(text_config=text, vision_config=vision, **SPECIAL))
    model = model.eval()
    model.set_attn_implementation(attention)
    return model


IDS = torch.arange(1, 11)[None]


@torch.no_grad()
def filled_cache(model, ids: Tensor = IDS) -> DynamicCache:
    cache = DynamicCache(config=model.config)
    model(ids, past_key_values=cache)
    return cache


def keep(cache: DynamicCache, rows: list[list[int]]) -> None:
    for layer, kept in zip(cache.layers, rows, strict=True):
        layer.keys, layer.values = layer.keys[:, :, kept], layer.values[:, :, kept]


@pytest.mark.parametrize("kind", ["qwen2", "qwen2_5_vl"])
@torch.no_grad()
def test_registered_attention_touches_no_other_and_extra_arguments_reach_it(kind: str):
    """`AttentionInterface.register` adds an implementation; keyword arguments of the text model's forward reach it."""
    stock = qwen2() if kind == "qwen2" else vision_language(kind)
    ours = qwen2(OURS) if kind == "qwen2" else vision_language(kind, OURS)
    text = ours.model if kind == "qwen2" else ours.model.language_model
    seen = Seen([], [], [], set())
    out = text(inputs_embeds=text.embed_tokens(IDS), observer=seen).last_hidden_state
    reference = stock.model if kind == "qwen2" else stock.model.language_model
    expected = reference(inputs_embeds=reference.embed_tokens(IDS)).last_hidden_state
    torch.testing.assert_close(out, expected)
    assert len(seen.queries) == TEXT["num_hidden_layers"]
    assert "cache_position" not in seen.names


@torch.no_grad()
def test_attention_gets_rotated_queries_and_past_plus_new_keys():
    """The attention function gets already rotated queries, and past and new keys together."""
    model = qwen2(OURS)
    cache, seen = filled_cache(model), Seen([], [], [], set())
    before = cache.layers[0].keys.clone()
    new = torch.tensor([[11, 12]])
    positions = torch.tensor([[20, 21]])
    model(new, past_key_values=cache, position_ids=positions, observer=seen)
    layer = model.model.layers[0]
    hidden = layer.input_layernorm(model.model.embed_tokens(new))
    plain = layer.self_attn.q_proj(hidden).view(1, 2, 4, 8).transpose(1, 2)
    rotated, _ = apply_rotary_pos_emb(plain, plain, *model.model.rotary_emb(hidden, positions))
    torch.testing.assert_close(seen.queries[0], rotated)
    assert seen.keys[0].shape == (1, 2, 12, 8)
    torch.testing.assert_close(seen.keys[0][:, :, :10], before)


@torch.no_grad()
def test_a_name_without_a_mask_entry_gets_no_mask():
    """Without an entry in `AttentionMaskInterface`, `attention_mask` is None, whatever the caller gave."""
    assert OURS not in AttentionMaskInterface._global_mapping
    seen = Seen([], [], [], set())
    qwen2(OURS)(IDS, attention_mask=torch.ones_like(IDS), observer=seen)
    assert seen.masks == [None, None]


@torch.no_grad()
def test_stock_attention_fails_on_layers_of_different_lengths_and_ours_does_not():
    """Stock code sizes one mask from one layer, so per-layer budgets raise there; a mask per layer is needed."""
    ragged = [[0, 1, 2, 3, 4], [0, 9]]
    new, positions = torch.tensor([[11, 12]]), torch.tensor([[10, 11]])
    stock, ours = qwen2(), qwen2(OURS)
    cache = filled_cache(stock)
    keep(cache, ragged)
    with pytest.raises(RuntimeError, match="size"):
        stock(new, past_key_values=cache, position_ids=positions, attention_mask=torch.ones(1, 12))
    cache = filled_cache(ours)
    keep(cache, ragged)
    assert ours(new, past_key_values=cache, position_ids=positions).logits.isfinite().all()
    assert [layer.keys.shape[2] for layer in cache.layers] == [7, 4]


@torch.no_grad()
def test_cache_layers_may_be_reassigned_and_then_report_kept_tokens():
    """`cache.layers[i].keys` may be reassigned; `get_seq_length()` then counts kept, not seen, tokens."""
    model = qwen2(OURS)
    cache = filled_cache(model)
    assert cache.get_seq_length() == 10
    keep(cache, [[0, 4, 9]] * 2)
    assert cache.get_seq_length() == 3
    given = model(torch.tensor([[11]]), past_key_values=cache, position_ids=torch.tensor([[10]])).logits
    cache = filled_cache(model)
    keep(cache, [[0, 4, 9]] * 2)
    assumed = model(torch.tensor([[11]]), past_key_values=cache).logits
    assert (given - assumed).abs().max() > 1e-4, "left to itself the model puts the next token at position 3"


@torch.no_grad()
def test_cache_update_sees_no_query_and_no_rotation():
    """`Cache.update` gets keys and values alone, so a cache cannot compress inside it."""
    given = []

    class Spy(DynamicCache):
        def update(self, key_states, value_states, layer_idx, *others, **named):
            given.append((key_states.shape, value_states.shape, layer_idx, others, named))
            return super().update(key_states, value_states, layer_idx, *others, **named)

    model = qwen2()
    model(IDS, past_key_values=Spy(config=model.config))
    assert given == [((1, 2, 10, 8), (1, 2, 10, 8), layer, (), {}) for layer in range(2)]


@pytest.mark.parametrize("axes", [1, 3])
@torch.no_grad()
def test_one_shift_re_rotates_keys_of_one_and_three_axis_models(axes: int):
    """`rotary_emb(x, position_ids)` recombines M-RoPE itself: rotating a rotated key by a difference moves it."""
    text = qwen2().model if axes == 1 else vision_language("qwen2_5_vl").model.language_model
    key = torch.randn(1, 2, 6, 8)
    shape = (1, 6) if axes == 1 else (3, 1, 6)
    old, new = torch.randint(0, 50, shape), torch.randint(0, 50, shape)
    cos, _ = text.rotary_emb(key, old)
    assert cos.shape == (1, 6, 8)

    def rotate(keys: Tensor, positions: Tensor) -> Tensor:
        return apply_rotary_pos_emb(keys, keys, *text.rotary_emb(keys, positions))[0]

    torch.testing.assert_close(rotate(rotate(key, old), new - old), rotate(key, new), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_yarn_scales_cos_and_sin_so_a_second_rotation_scales_again():
    """YaRN multiplies cos and sin by `attention_scaling`; a shift divides by it once."""
    rope = {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e4, "original_max_position_embeddings": 128}
    rotary = Qwen2RotaryEmbedding(Qwen2Config(**TEXT, rope_parameters=rope))
    assert rotary.attention_scaling > 1.01
    key = torch.randn(1, 2, 1, 8)
    moved = apply_rotary_pos_emb(key, key, *rotary(key, torch.tensor([[5]])))[0]
    torch.testing.assert_close(moved.norm(), key.norm() * rotary.attention_scaling)


@torch.no_grad()
def test_gaps_in_positions_are_silently_read_as_packed_sequences():
    """Without mask and cache, stock code takes position gaps for packed sequences and cuts attention at them."""
    gapped = torch.tensor([[0, 1, 2, 5, 6, 7, 20, 21, 22, 23]])
    silent = qwen2()(IDS, position_ids=gapped, use_cache=False).logits
    masked = qwen2()(IDS, position_ids=gapped, attention_mask=torch.ones_like(IDS), use_cache=False).logits
    cut = qwen2()(IDS[:, 6:], position_ids=gapped[:, 6:], use_cache=False).logits
    ours = qwen2(OURS)(IDS, position_ids=gapped, use_cache=False).logits
    torch.testing.assert_close(silent[:, 6:], cut)
    assert (silent - ours).abs().max() > 1e-3
    torch.testing.assert_close(masked, ours, atol=1e-5, rtol=1e-5)  # a mask of ones protects


def test_flash_path_would_read_gaps_as_packed_too():
    """The flash path tests positions in the same way, so position ids are never forwarded to a kernel."""
    assert _is_packed_sequence(torch.tensor([[0, 1, 5, 6]]), 1)
    assert _is_packed_sequence(torch.tensor([[0, 1, 1, 2]]), 1)
    assert not _is_packed_sequence(torch.tensor([[0, 1, 2, 3]]), 1)


@torch.no_grad()
def test_stock_generate_works_on_a_ragged_cache_given_the_last_id():
    """`generate` continues a compressed ragged cache from the last id and a full-length mask, as by hand."""
    model = qwen2(OURS)
    rows = [[0, 1, 2, 5, 8], [0, 8]]
    cache = filled_cache(model, IDS[:, :-1])
    keep(cache, rows)
    mask = torch.ones(1, 10, dtype=torch.long)
    options = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0}
    made = model.generate(IDS[:, -1:], attention_mask=mask, past_key_values=cache, **options)[0, 1:]
    cache = filled_cache(model, IDS[:, :-1])
    keep(cache, rows)
    last, by_hand = IDS[:, -1:], []
    for position in range(9, 13):
        logits = model(last, past_key_values=cache, position_ids=torch.tensor([[position]])).logits
        last = logits[:, -1:].argmax(-1)
        by_hand.append(int(last))
    assert made.tolist() == by_hand


@torch.no_grad()
def test_stock_generate_given_all_ids_feeds_evicted_tokens_again():
    """Given all ids, `generate` takes the cache's kept length for the seen one and feeds the rest again, silently."""
    model = qwen2(OURS)
    cache, fed = filled_cache(model, IDS[:, :-1]), []
    keep(cache, [[0, 4, 8]] * 2)
    model.model.register_forward_pre_hook(
        lambda _, args, kwargs: fed.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    mask = torch.ones_like(IDS)
    model.generate(IDS, attention_mask=mask, past_key_values=cache, max_new_tokens=1, do_sample=False, pad_token_id=0)
    assert fed[0] == 7, "10 ids less 3 kept keys, where only 1 id is new"


def plain_trainer(folder: Path) -> Trainer:
    arguments = TrainingArguments(output_dir=str(folder), report_to=[], use_cpu=True, disable_tqdm=True)
    return Trainer(model=qwen2(), args=arguments)


def test_trainer_counts_targets_in_a_tensor_and_swallows_a_list(tmp_path: Path):
    """The Trainer counts targets in `batch["labels"]`; with a list the error is swallowed and nothing is counted."""
    trainer = plain_trainer(tmp_path)
    labels = torch.tensor([[-100, 3, 4, -100], [5, 6, -100, -100]])
    device = torch.device("cpu")
    assert trainer._get_num_items_in_batch([{"labels": labels}], device) == 3, "the first of a row is never predicted"
    assert trainer._get_num_items_in_batch([{"labels": list(labels)}], device) is None


class Box:
    """An object that can be moved, but is no container that the Trainer knows."""

    def __init__(self, values: Tensor) -> None:
        self.values = values

    def to(self, device, **_) -> "Box":
        return Box(self.values.to(device))


def test_trainer_moves_containers_and_accelerate_also_objects_with_to(tmp_path: Path):
    """The Trainer moves mappings, lists, tuples and tensors; accelerate's data loader also what has `.to`."""
    trainer, meta = plain_trainer(tmp_path), torch.device("meta")
    trainer.args = SimpleNamespace(device=meta)
    moved = trainer._prepare_input({"deep": [(torch.zeros(1),)], "box": Box(torch.zeros(1))})
    assert moved["deep"][0][0].is_meta and not moved["box"].values.is_meta
    assert send_to_device({"box": Box(torch.zeros(1))}, meta)["box"].values.is_meta


def test_trainer_casts_floats_to_the_type_of_deepspeed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Under DeepSpeed every floating-point input gets its type, so float64 seconds become bfloat16."""
    trainer = plain_trainer(tmp_path)
    settings = SimpleNamespace(hf_ds_config=SimpleNamespace(dtype=lambda: torch.bfloat16))
    trainer.accelerator = SimpleNamespace(state=SimpleNamespace(deepspeed_plugin=settings))
    monkeypatch.setattr(trainer, "is_deepspeed_enabled", True)
    assert trainer._prepare_input(torch.zeros(1, dtype=torch.float64)).dtype == torch.bfloat16
    assert trainer._prepare_input(torch.zeros(1, dtype=torch.long)).dtype == torch.long


def test_tied_embeddings_cannot_be_saved_as_they_are(tmp_path: Path):
    """safetensors refuses two names for one storage, so tied weights are written under one name."""
    wrapped = nn.ModuleDict({"lm": qwen2(tie_word_embeddings=True)})
    with pytest.raises(RuntimeError, match="share memory"):
        save_file(wrapped.state_dict(), tmp_path / "model.safetensors")
    names = dict(wrapped.named_parameters())
    save_file(names, tmp_path / "model.safetensors")
    assert "lm.model.embed_tokens.weight" in names and "lm.lm_head.weight" not in names


def video_prompt(frames: int = 4) -> dict[str, Tensor]:
    """Ids of a video of `frames` temporal patches, 4x4 patches merged 2x2 [1,M], with text on both sides."""
    ids = [1, 2, 61, *[VIDEO_ID] * (frames * 4), 62, 3, 4]
    ids = torch.tensor([ids])
    return {
        "input_ids": ids,
        "mm_token_type_ids": (ids == VIDEO_ID).int() * 2,
        "video_grid_thw": torch.tensor([[frames, 4, 4]]),
    }


@pytest.mark.parametrize("kind", ["qwen2_vl", "qwen2_5_vl"])
def test_text_after_a_video_continues_inside_its_positions(kind: str):
    """Stock positions of text after a video start at max(h, w) // merge, not, as trained, past max(t, h, w)."""
    positions, _ = vision_language(kind).model.get_rope_index(**video_prompt(frames=6))
    video, after = positions[:, 0, 3:-3], positions[:, 0, -3:]
    assert after[0].tolist() == [5, 6, 7], "3 tokens before, then 4 // 2 steps"
    assert video.max() >= after.min()


@torch.no_grad()
def test_without_token_types_positions_are_silently_one_dimensional():
    """Without `mm_token_type_ids`, stock Qwen2.5-VL numbers a video like text, with no warning."""
    model, batch, used = vision_language("qwen2_5_vl"), video_prompt(), []
    rotary = model.model.language_model.rotary_emb
    rotary.register_forward_pre_hook(
        lambda _, args, kwargs: used.append(kwargs.get("position_ids", args[-1])), with_kwargs=True
    )
    batch["pixel_values_videos"] = torch.randn(4 * 16, 3 * 2 * 4 * 4)
    model(**batch)
    batch.pop("mm_token_type_ids")
    model(**batch)
    deep, flat = used
    assert (deep[0] != deep[1]).any()
    assert (flat == torch.arange(batch["input_ids"].shape[1])).all()


@torch.no_grad()
def test_qwen3_vl_has_side_features_that_belong_to_tokens():
    """Qwen3-VL's deepstack features are one row per video token, so they must be selected together with it."""
    model, grid = vision_language("qwen3_vl"), torch.tensor([[2, 4, 4]])
    out = model.model.get_video_features(torch.randn(2 * 16, 3 * 2 * 4 * 4), grid, return_dict=True)
    assert [tokens.shape for tokens in out.pooler_output] == [(8, 32)]
    # transformers 5.17 returns a level as one tensor, later releases split it by video
    levels = [level if isinstance(level, torch.Tensor) else torch.cat(level) for level in out.deepstack_features]
    assert [level.shape for level in levels] == [(8, 32), (8, 32)]
