"""Low-rank adapters on a host's language model, through PEFT."""

from torch import nn

from langdc.config import LoraConfig
from langdc.interfaces import Host


def attach_lora(host: Host, config: LoraConfig) -> None:
    """Put LoRA layers into the text model, in place: names and classes of everything else stay as they are."""
    import peft  # takes seconds, and few who import this module have an adapter

    targets = config.targets
    if targets == "all-linear":
        targets = sorted(
            {name.rpartition(".")[2] for name, m in host.text_model.named_modules() if isinstance(m, nn.Linear)}
        )
    settings = peft.LoraConfig(
        r=config.rank, lora_alpha=config.alpha, lora_dropout=config.dropout, target_modules=targets
    )
    peft.inject_adapter_in_model(settings, host.text_model)
