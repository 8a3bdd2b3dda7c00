"""Low-rank adapters on language models, through PEFT."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from langdc.config import LoraConfig
from langdc.devices import making
from langdc.registry import nearest


def adapt(model: nn.Module, config: LoraConfig) -> None:
    """Put LoRA layers into a model without its head, in place; all other names and classes stay as they are. Their
    weights are drawn where the model is. ValueError for targets that name no layer.
    """
    if isinstance(config.targets, list):
        layers = [name for name, part in model.named_modules() if getattr(getattr(part, "weight", None), "ndim", 0) > 1]
        unmatched = [t for t in config.targets if not any(f".{name}".endswith(f".{t}") for name in layers)]
        if unmatched or not config.targets:
            names = {name.rpartition(".")[2] for name in layers}
            raise ValueError(
                f"lora.targets: no layer of this {type(model).__name__} is called {', '.join(unmatched) or 'nothing'}."
                f"{nearest(''.join(unmatched[:1]), names)} Or give all-linear."
            )
    import peft  # takes seconds, and few who import this module have an adapter

    settings = peft.LoraConfig(
        r=config.rank, lora_alpha=config.alpha, lora_dropout=config.dropout, target_modules=config.targets
    )
    with making(next(model.parameters()).device, None):
        peft.inject_adapter_in_model(settings, model)


def merge(model: nn.Module) -> list[str]:
    """Add what the adapters learned to the layers they sit on and take them away; names of the weights changed."""
    from peft.tuners.lora import LoraLayer

    changed = []
    for name, layer in list(model.named_modules()):
        if isinstance(layer, LoraLayer):
            layer.merge()
            model.set_submodule(name, layer.get_base_layer())
            changed.append(f"{name}.weight")
    return changed


@contextmanager
def merged(model: nn.Module) -> Iterator[list[str]]:
    """As `merge`, for a while; tensors that were taken from the model meanwhile stay as they were."""
    from peft.tuners.lora import LoraLayer

    layers: list[tuple[str, Any]] = [each for each in model.named_modules() if isinstance(each[1], LoraLayer)]
    before = [layer.get_base_layer().weight.data.clone() for _, layer in layers]
    try:
        yield merge(model)
    finally:
        for (name, layer), weight in zip(layers, before, strict=True):
            layer.get_base_layer().weight.data = weight
            layer.merged_adapters.clear()
            model.set_submodule(name, layer)
