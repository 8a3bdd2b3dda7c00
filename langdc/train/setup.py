"""The model of a run as it is trained: built, started from an earlier run, with adapters and kernels, partly frozen."""

from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, Self

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from langdc import checkpoint
from langdc.adapters import adapt, merged
from langdc.backbones.inputs import slides
from langdc.config import LoraConfig, RunConfig, check
from langdc.interfaces import Backbone, Objective
from langdc.language_models import FLASH, fastest_attention, use_liger
from langdc.log import get_logger
from langdc.model import VideoModel
from langdc.train.trainable import unfreeze

logger = get_logger(__name__)


@dataclass
class RunModel:
    """A model to train. Its checkpoint keeps tensors of earlier runs (`inherited`) and their adapters (`lora`).

    `trained`: names of what this run trains; `adapted`: language models of the compressor with adapters that are merged
    when they are saved; `exact`: values of frozen parameters that a checkpoint holds, from before they were rounded.
    """

    model: VideoModel
    inherited: dict[str, Tensor]
    lora: LoraConfig | None
    trained: set[str]
    adapted: dict[str, nn.Module]
    exact: dict[str, Tensor] = field(default_factory=dict)

    @classmethod
    def of(cls, config: RunConfig, objective: Objective, device: torch.device | None = None) -> Self:
        """Build what a config says on a device (None: torch's default), start it from the earlier run, attach adapters,
        freeze the rest, choose kernels for where it is.

        ValueError for patterns without effect, adapters unlike the earlier ones, and a run that trains nothing.
        """
        model, inherited = checkpoint.start(config.model, config.start, objective.reads, device)
        lora, inherited = _attach_lora(model, config, objective, inherited)
        adapted = _adapt_compressor(model, config.train.compressor_lora)
        patterns = [*config.train.trainable, *(f"{name}.*lora_*" for name in adapted)]
        trained = unfreeze(model, patterns, adapters=config.train.lora is not None)
        if not trained:
            raise ValueError("The run trains nothing: give patterns in train.trainable, or adapters in train.lora.")
        run = cls(model, inherited, lora, trained, adapted)
        run._set_types(config.precision)
        _set_kernels(model.to(device or model.device), config, objective)
        return run

    def _set_types(self, precision: str) -> None:
        """Hold frozen parameters in bfloat16 where training computes in it, which then casts none; trained ones, which
        autocast casts, in float32, where small updates are not lost. float16 has not the range to hold any weight.
        """
        written = {*self.initialised, *(n for n, _ in self.model.named_parameters() if n.startswith(self._prefixes))}
        for name, parameter in self.model.named_parameters():
            if name in self.trained and precision != "float32" and parameter.is_floating_point():
                parameter.data = parameter.data.float()
            elif name not in self.trained and precision == "bfloat16" and parameter.dtype == torch.float32:
                if name in written and not parameter.is_meta:
                    self.exact[name] = parameter.data.cpu()
                parameter.data = parameter.data.bfloat16()

    @property
    def _prefixes(self) -> tuple[str, ...]:
        """How the names of adapted parts begin."""
        return tuple(f"{name}." for name in self.adapted)

    @property
    def initialised(self) -> dict[str, Tensor]:
        """Tensors that neither a published part nor an earlier run holds: they were drawn at random here."""
        found = checkpoint.unpublished(self.model)
        return {name: tensor for name, tensor in found.items() if name not in self.inherited}

    @property
    def written(self) -> list[Tensor]:
        """Tensors that the process that saves needs whole."""
        merged = [parameter for part in self.adapted.values() for parameter in part.parameters()]
        return [*(self.model.get_parameter(name) for name in self.trained), *self.initialised.values(), *merged]

    def tensors(self) -> dict[str, Tensor]:
        """What a checkpoint holds of it, with the compressor's adapters merged."""
        for name, values in self.exact.items():
            parameter = self.model.get_parameter(name)
            parameter.data = values.to(parameter.device)
        kept = self.trained | checkpoint.buffers(self.model).keys()
        with ExitStack() as stack:
            for prefix, part in self.adapted.items():
                names = {f"{prefix}.{name}" for name in stack.enter_context(merged(part))}
                kept = {name for name in kept if not (name.startswith(f"{prefix}.") and ".lora_" in name)} | names
            own = checkpoint.own_tensors
            return {**own(self.model, self.initialised), **self.inherited, **own(self.model, kept)}


def _attach_lora(
    model: VideoModel, config: RunConfig, objective: Objective, inherited: dict[str, Tensor]
) -> tuple[LoraConfig | None, dict[str, Tensor]]:
    """Attach the run's adapters. Returns those the model now has, and the earlier tensors under their new names."""
    wanted = config.train.lora
    stated = checkpoint.read_manifest(checkpoint.earlier(config.start))["lora"] if config.start else None
    earlier = check(LoraConfig, stated, "lora") if stated else None
    if wanted is not None and not objective.reads:
        raise ValueError(f"train.lora: the objective {config.objective.name!r} does not call the language model.")
    if wanted is None or wanted == earlier:
        return earlier, inherited
    if earlier is not None:
        raise ValueError(
            f"train.lora is {wanted.model_dump()}, but {config.start} has {earlier.model_dump()}. Use the same, or "
            "export the earlier checkpoint first, which merges its adapters."
        )
    before = dict(model.named_parameters(remove_duplicate=False))
    adapt(model.backbone.text_model, wanted)
    now = {id(parameter): name for name, parameter in model.named_parameters()}
    return wanted, {now[id(before[name])]: tensor for name, tensor in inherited.items()}


def _adapt_compressor(model: VideoModel, lora: LoraConfig | None) -> dict[str, nn.Module]:
    """Attach adapters to the language models inside the compressor; these, without their heads, by name."""
    if lora is None:
        return {}
    found = {id(part.base_model) for part in _pretrained(model.compressor)}
    if not found:
        name = model.config.compressor.name
        raise ValueError(f"train.compressor_lora: the compressor {name!r} has no language model in it.")
    adapted: dict[str, nn.Module] = {name: part for name, part in model.named_modules() if id(part) in found}
    for part in adapted.values():
        adapt(part, lora)
    return adapted


def _pretrained(module: nn.Module) -> list[PreTrainedModel]:
    return [part for part in module.modules() if isinstance(part, PreTrainedModel)]


def _set_kernels(model: VideoModel, config: RunConfig, objective: Objective) -> None:
    """Set the attention kernel, fused layers and gradient checkpointing of every transformers part.

    flash-attn reads padding masks only: not the mask of several questions that share a video, nor what a run in float16
    does in float32 before its first step. "auto" takes it for language models of a compressor that is trained alone.
    """
    packing, several = config.train.packing, objective.reads and config.train.questions_per_video > 1
    which = "train.packing" if packing else "train.questions_per_video > 1"
    if config.attention == FLASH and objective.reads and (packing or several):
        raise ValueError(
            f"attention: {FLASH} cannot be used with {which}, since what shares a row needs a mask of its own. Use "
            "auto, which takes it where it can, sdpa, or leave the setting out."
        )
    if packing and not objective.reads:
        raise ValueError(f"train.packing: the objective {config.objective.name!r} does not call the language model.")
    kinds = _other_attention(model.backbone)
    if (packing and kinds) or (several and "linear_attention" in kinds):
        advice = "; train.group_by_length pads less, too" if packing else ""
        raise ValueError(
            f"{which}: the language model of {config.model.backbone.name!r} has layers of {', '.join(kinds)}, "
            f"which cannot keep apart what shares a row. Leave it out{advice}."
        )
    fast, reason = fastest_attention(config.precision != "float32", model.device)
    alone = {id(part) for part in _pretrained(model.compressor)} if not objective.reads else set()
    for part in _pretrained(model):
        kernel = config.attention
        if kernel == "auto":
            kernel = fast if id(part) in alone else "sdpa"
        if kernel not in (None, part.config._attn_implementation):
            part.set_attn_implementation(kernel)
        if config.gradient_checkpointing and part.supports_gradient_checkpointing:
            part.gradient_checkpointing_enable({"use_reentrant": False})
    if config.attention == "auto":
        logger.info("attention: %s (%s).", fast if alone else "sdpa", reason if alone else "the language model's own")
    heads: list[Any] = [part for part in _pretrained(model.compressor) if part.get_output_embeddings() is not None]
    for part in [*([model.backbone.language_model] if objective.reads else []), *heads]:
        use_liger(part, config.liger)


def _other_attention(backbone: Backbone) -> list[str]:
    """Kinds of layers that do not attend to all tokens that a mask shows."""
    kinds = getattr(backbone.text_model.config, "layer_types", None) or []
    return sorted({*kinds, *["sliding_attention"] * slides(backbone)} - {"full_attention"})
