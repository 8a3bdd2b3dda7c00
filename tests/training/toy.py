"""A small thing to train: a tiny tied Qwen2 behind a projector, on made-up token rows."""

import time
from pathlib import Path

import torch
from langdc.training import runs
from langdc.training.phases import Outcome, run_phase
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import Qwen2Config, Qwen2ForCausalLM

from langdc import checkpoint, distributed
from langdc.config import StageConfig, check
from langdc.hashing import tensors_hash
from langdc.train.trainable import unfreeze

VOCABULARY, WIDTH = 96, 64


class Rows(Dataset):
    """Token rows of different lengths that change every epoch, so that a wrong epoch shows."""

    def __init__(self, items: int, slow: float) -> None:
        self.items, self.slow, self.epoch = items, slow, 0

    def __len__(self) -> int:
        return self.items

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __getitem__(self, index: int) -> list[int]:
        time.sleep(self.slow)
        dice = torch.Generator().manual_seed(1000 * self.epoch + index)
        length = 4 + index % 9
        start = int(torch.randint(VOCABULARY, (1,), generator=dice))
        return [(start + 3 * step) % VOCABULARY for step in range(length)]


def collate(rows: list[list[int]]) -> dict[str, Tensor]:
    """Right-padded ids and labels."""
    ids = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.long)
    labels = torch.full_like(ids, -100)
    for number, row in enumerate(rows):
        ids[number, : len(row)] = torch.tensor(row)
        labels[number, 1 : len(row)] = torch.tensor(row[1:])
    return {"ids": ids, "labels": labels}


class Toy(nn.Module):
    """Embeddings -> projector -> Qwen2; mean loss, or the sum over num_items_in_batch."""

    def __init__(self, dropout: float) -> None:
        super().__init__()
        settings = Qwen2Config(
            vocab_size=VOCABULARY,
            hidden_size=WIDTH,
            intermediate_size=4 * WIDTH,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            attention_dropout=dropout,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=None,
        )
        self.projector = nn.Linear(WIDTH, WIDTH)
        self.language_model = Qwen2ForCausalLM(settings)
        nn.init.normal_(self.language_model.get_input_embeddings().weight, std=0.5)  # frozen, and the output too

    def forward(self, ids: Tensor, labels: Tensor, num_items_in_batch: Tensor | None = None) -> dict[str, Tensor]:
        embeds = self.projector(self.language_model.get_input_embeddings()(ids))
        logits = self.language_model(inputs_embeds=embeds).logits[:, :-1]
        total = nn.functional.cross_entropy(logits.flatten(0, 1).float(), labels[:, 1:].flatten(), reduction="sum")
        return {"loss": total / ((labels != -100).sum() if num_items_in_batch is None else num_items_in_batch)}


def settings(output: Path, overrides: dict | None = None, **stage: object) -> StageConfig:
    """Twelve items, three steps an epoch at the default batch size, and a line for every step."""
    phase = {
        "name": "toy",
        "objective": "caption",
        "data": ["unused.jsonl"],
        "trainable": ["projector.*", "language_model.model.layers.*"],
        "steps": 10,
        "batch_size": 4,
        "learning_rate": 3e-3,
        "projector_learning_rate": 1e-3,
        "weight_decay": 0.1,
        **(overrides or {}),
    }
    members = {"backbone": {"name": "toy"}, "compressor": {"name": "toy"}}
    tree = {
        "stage": "stage1",
        "model": members,
        "output": str(output),
        "log_steps": 1,
        "save_steps": 4,
        "phases": [phase],
    }
    return check(StageConfig, {**tree, **stage}, "toy")


def train(config: StageConfig, items: int = 12, dropout: float = 0.1, slow: float = 0.0) -> dict:
    """Claim a directory, train one phase in it, and leave `finished.json`; returns what that holds."""
    distributed.start(deepspeed=config.deepspeed is not None)
    run = runs.claim(config)
    torch.manual_seed(config.seed)
    module, phase = Toy(dropout), config.phases[0]
    trained = unfreeze(module, phase.trainable)
    found = {}

    def save(outcome: Outcome) -> None:
        tensors = checkpoint.own_tensors(module, trained)
        found.update(outcome.__dict__, hash=tensors_hash(tensors))
        found["parameters"] = sum(tensor.numel() for tensor in tensors.values())

    run_phase(
        module,
        Rows(items, slow),
        collate,
        phase,
        config,
        run.directory,
        save=save,
        flops=lambda batch: 10.0 * batch["ids"].numel(),
    )
    if found:
        runs.write_json(run.directory / runs.FINISHED, found)
    return found
