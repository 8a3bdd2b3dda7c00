"""How many floating-point operations a model's parts take; a multiply-add counts two.

Language models by closed form, from the tokens they read and write; encoders by torch's counter on the meta device,
once per shape; compressors and projectors by torch's counter in the pass that is timed, `with Counted() as counted`.

Counted: matrix products and convolutions, attention included, every query with every key, the masked half too. Not
counted: norms, activations, softmax, rotations, sums, element-wise products, embedding look-ups, resizing.
docs/flops.md has the list by stage.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from copy import deepcopy
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch._ops import HigherOrderOperator
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.flop_counter import flop_registry
from transformers import PretrainedConfig

from langdc.interfaces import Backbone
from langdc.kvcache import recurrent_layers
from langdc.types import Grids, LanguageWork

aten = torch.ops.aten

# ---- language models


def language_model_flops(
    config: PretrainedConfig, read: int, cached: float = 0, predictions: int = 1, fed: int | None = None
) -> float:
    """A gated dense decoder that reads `read` tokens after `cached` others (on average), of which its feed-forward
    parts read `fed` (None: all); `predictions`: of logits.
    Layers of linear attention are the gated delta rule (arXiv 2412.06464), token by token; then full ones have a gate.
    """
    width = config.hidden_size
    head_width = getattr(config, "head_dim", None) or width // config.num_attention_heads
    queries, keys = config.num_attention_heads * head_width, config.num_key_value_heads * head_width
    linear = recurrent_layers(config)
    weights = width * ((3 if linear else 2) * queries + 2 * keys)
    mixing = (config.num_hidden_layers - linear) * (weights + 2 * queries * (read + cached))
    if linear:
        heads, keys = config.linear_num_value_heads, config.linear_num_key_heads * config.linear_key_head_dim
        values = heads * config.linear_value_head_dim
        weights = width * (2 * keys + 3 * values + 2 * heads) + config.linear_conv_kernel_dim * (2 * keys + values)
        mixing += linear * (weights + 3 * values * config.linear_key_head_dim)
    feeding = (read if fed is None else fed) * config.num_hidden_layers * 3 * width * config.intermediate_size
    return 2.0 * (read * mixing + feeding) + 2.0 * predictions * width * config.vocab_size


def work_flops(work: Sequence[LanguageWork]) -> float:
    """What the language models inside a compressor took for one video."""
    reading = (language_model_flops(w.config, w.read, predictions=w.scored + min(w.written, 1)) for w in work)
    return sum(reading, 0.0) + sum(_writing_flops(w.config, w.read, w.written - 1) for w in work)


def _writing_flops(config: PretrainedConfig, cached: float, steps: int) -> float:
    """`steps` tokens read one by one after `cached` others; linear in those, so their mean is taken."""
    return steps * language_model_flops(config, 1, cached + (steps - 1) / 2) if steps > 0 else 0.0


def reading_flops(
    backbone: Backbone,
    calls: Sequence[tuple[int, float, int, int]],
    held: float,
    steps: int,
    scoring: float = 0.0,
    unread: int = 0,
    choosing: float = 0.0,
) -> dict[str, float]:
    """Reading a prompt up to the first token, and `steps` more calls of the model. `calls`: tokens read, keys cached
    before, layers, and tokens that came to their feed-forward parts, of each; `held`: keys per layer after the prompt;
    `scoring`: what compressors took to choose; `unread`: keys that steps left out, over all of them and all layers, and
    `choosing`: what it took to choose these.
    """
    config = backbone.language_model.config.get_text_config()
    held -= unread / config.num_hidden_layers / max(1, steps)
    each = (language_model_flops(config, new, past, 0, fed) * layers for new, past, layers, fed in calls)
    read = sum(each) / config.num_hidden_layers
    prefill = read + language_model_flops(config, 0) + scoring
    return {"prefill": prefill, "generate": _writing_flops(config, held, steps) + choosing}


# ---- whatever is computed, by torch's counter


def _attention(query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> int:
    """Scores and weighted values of [B,h,Q,E], [B,G,n,E] and [B,G,n,E']; h is a multiple of G (grouped keys)."""
    return 2 * query.shape[:-1].numel() * key.shape[-2] * (query.shape[-1] + value.shape[-1])


def _self_attention(query: Tensor, key: Tensor, value: Tensor, width: int, *_: Any, **__: Any) -> int:
    """The fused call of `nn.MultiheadAttention`: four projections and the attention, on [B,n,D]."""
    tokens = query.shape[:-1].numel()
    return 8 * tokens * width**2 + 4 * tokens * key.shape[-2] * width


def _pairs(one: Tensor, other: Tensor, *_: Any, **__: Any) -> int:
    """All products of rows [...,n,E] and [...,m,E], of which distances are made."""
    return 2 * one.numel() * other.shape[-2]


def _matrix_vector(matrix: Tensor, *_: Any, **__: Any) -> int:
    return 2 * matrix.numel()


_FORMULAS: Mapping[Any, Callable[..., int]] = {
    **flop_registry,
    # torch 2.11 refuses grouped keys here
    aten._scaled_dot_product_flash_attention: _attention,
    aten._scaled_dot_product_efficient_attention: _attention,
    aten._scaled_dot_product_cudnn_attention: _attention,
    # what torch's counter lacks
    aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    aten._scaled_dot_product_fused_attention_overrideable: _attention,
    aten.scaled_dot_product_attention: _attention,  # whole in inference mode
    aten._native_multi_head_attention: _self_attention,
    aten.mv: _matrix_vector,
    aten.dot: _matrix_vector,
    aten.vdot: _matrix_vector,
    aten.addmv: lambda _, matrix, *__, **___: _matrix_vector(matrix),
    aten._euclidean_dist: _pairs,
    aten._cdist_forward: _pairs,
}


class Counted(TorchDispatchMode):
    """Counts what is computed inside, as `total`, by torch's formulas and those that it lacks. It keeps no figures per
    module, so it is four times as fast as torch's counter: it runs while seconds are measured.
    """

    supports_higher_order_operators = True

    def __init__(self) -> None:
        super().__init__()
        self.total = 0.0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if isinstance(func, HigherOrderOperator):
            return NotImplemented  # as torch's does
        kwargs = kwargs or {}
        formula = _FORMULAS.get(func._overloadpacket)
        if formula is None and torch.is_inference_mode_enabled():  # operations come whole there
            with self:
                parts = func.decompose(*args, **kwargs)
            if parts is not NotImplemented:
                return parts
        out = func(*args, **kwargs)
        if formula is not None:
            self.total += formula(*args, **kwargs, out_val=out)
        return out


@contextmanager
def uncounted() -> Iterator[None]:
    """No `Counted` counts inside, and none costs time; for what is counted by closed form."""
    with _disable_current_modes() as modes, ExitStack() as others:
        for mode in reversed(modes):
            if mode is not None and not isinstance(mode, Counted):
                others.enter_context(mode)
        yield


# ---- encoders, by their shapes


def encoder_flops(backbone: Backbone, encoded: Grids) -> float:
    """What the encoders took for one video's grids, counted on the meta device once for each set of shapes."""
    shapes = tuple((name, tuple(grid.values.shape), grid.saliency is not None) for name, grid in encoded.items())
    known: dict[Any, float] = vars(backbone).setdefault("_encoder_flops", {})
    if shapes not in known:
        with _disable_current_modes(), torch.inference_mode(), _Shapes(), Counted() as counted:
            times = _without_weights(backbone).encode_blank(encoded)
        known[shapes] = times * counted.total
    return known[shapes]


def _without_weights(backbone: Backbone) -> Backbone:
    """A copy of a backbone on the meta device, without its language model: for shapes."""
    parts = (backbone, *backbone.encoders.values())  # which training may keep out of the module tree
    held = (tensor for part in parts for tensor in chain(part.parameters(), part.buffers()))
    tensors = {id(tensor): torch.empty_like(tensor, device="meta") for tensor in held}
    language = {id(part): nn.Identity() for part in (backbone.text_model, backbone.lm_head)}
    # tokenizers and processors are shared
    shared = {id(value): value for value in vars(backbone).values() if not isinstance(value, nn.Module | dict)}
    copied = deepcopy(backbone, {**shared, **tensors, **language})
    for module in copied.modules():
        config: Any = getattr(module, "config", None)
        if getattr(config, "_attn_implementation", "eager") not in ("eager", "sdpa"):
            config._attn_implementation = "sdpa"  # the kernels of others cannot run on the meta device
    return copied


class _Shapes(TorchDispatchMode):
    """Computes shapes alone of tensors on the meta device; integers keep their values, which encoders look up."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is aten.scaled_dot_product_attention.default:
            query, _, value = args[:3]
            return query.new_empty(*query.shape[:-1], value.shape[-1])
        if func is aten._to_copy.default and not args[0].is_floating_point():
            kwargs = {**kwargs, "device": args[0].device}
        if any(leaf.is_meta for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)):
            args, kwargs = tree_map_only(Tensor, lambda tensor: tensor.to("meta"), (args, kwargs))
        return func(*args, **kwargs)
