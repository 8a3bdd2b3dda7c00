"""Memory by closed form, against the bytes that a real step of a small model holds, and what fits where."""

import pytest
import torch

from benchmarks.memory import most_live_bytes
from langdc.adapters import attach_lora
from langdc.config import LoraConfig, PhaseConfig
from langdc.training import memory
from langdc.training.memory import GIB, Layout, Rows, Weights
from langdc.training.trainable import unfreeze
from tests import tiny

ROWS, LENGTH = 6, 80


def phase(**changes) -> PhaseConfig:
    settings = {"name": "x", "objective": "answer", "data": ["x"], "trainable": ["*"], "steps": 1, **changes}
    return PhaseConfig(**settings)


def kept_bytes(reader, rows: int, length: int, width: int) -> int:
    """Storage that autograd holds for the layers of a language model, parameters left out."""
    own = {p.untyped_storage().data_ptr() for p in reader.parameters()}
    held: dict[int, int] = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            held[storage.data_ptr()] = storage.nbytes()
        return tensor

    embeds = torch.randn(rows, length, width, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        found = reader.base_model(inputs_embeds=embeds, use_cache=False).last_hidden_state
    assert found.requires_grad
    return sum(held.values())


@pytest.mark.parametrize("how", ["all", "frozen", "lora"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_activations_are_what_autograd_keeps(how: str, checkpointing: bool):
    model = tiny.model("pool", backbone=tiny.backbone_settings(language_model=tiny.qwen2(64, layers=6)))
    reader, lora = model.backbone.language_model, None
    reader.requires_grad_(how == "all")
    if how == "lora":
        lora = LoraConfig(rank=4, alpha=8, dropout=0.0)
        attach_lora(model.backbone, lora)
    model.train()
    if checkpointing:
        reader.gradient_checkpointing_enable({"use_reentrant": False})
    measured = kept_bytes(reader, ROWS, LENGTH, 64)
    layout = Layout(checkpointing=checkpointing)
    expected = memory.activations(reader.config, ROWS, LENGTH, layout, how == "all", lora)
    if checkpointing:  # one layer is made again at a time, after the forward pass
        expected -= memory.kept_per_token(reader.config, 4, how == "all", lora) * ROWS * LENGTH
    assert expected == pytest.approx(measured, rel=0.2)


def test_a_whole_step_holds_about_what_is_planned():
    model = tiny.model(
        "pool", backbone=tiny.backbone_settings(language_model=tiny.qwen2(128, layers=8, tie_word_embeddings=False))
    )
    unfreeze(model, ["backbone.language_model.*"])
    model.train()
    reader = model.backbone.language_model

    def step() -> None:
        adam = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])
        embeds = torch.randn(ROWS, LENGTH, 128, requires_grad=True)
        found = reader.base_model(inputs_embeds=embeds, use_cache=False).last_hidden_state
        logits = reader.lm_head(found[:, -4:]).float()
        torch.nn.functional.cross_entropy(logits.flatten(0, 1), torch.zeros(ROWS * 4, dtype=torch.long)).backward()
        adam.step()

    rows = Rows(rows=1, longest=LENGTH, learned=4)
    planned = memory.memory(model, phase(), rows, Weights.of(model), Layout(micro_batch=ROWS))
    weights = planned["weights"]
    assert weights == sum(p.numel() * 4 for p in model.parameters())
    # the optimizer begins when activations are gone, so a step holds the larger of both
    state = planned["gradients"] + planned["optimizer"]
    most = max(planned["activations"] + planned["logits"] + planned["gradients"], state)
    assert most_live_bytes(step) == pytest.approx(most, rel=0.3)


@pytest.fixture(scope="module")
def model():
    found = tiny.model("pool")
    unfreeze(found, ["backbone.language_model.*"])
    return found


def test_zero_divides_what_it_says(model):
    rows, weights = Rows(1, 50, 5), Weights.of(model)
    base = Layout(gpus=8, precision="bfloat16", micro_batch=2)
    sizes = {
        zero: memory.memory(model, phase(), rows, weights, Layout(**{**base.__dict__, "zero": zero}))
        for zero in (0, 1, 2, 3)
    }
    count, trained = weights.total, weights.trained
    assert sizes[0]["optimizer"] == 8 * trained and sizes[1]["optimizer"] == 12 * trained / 8
    assert sizes[1]["gradients"] - sizes[2]["gradients"] == pytest.approx(2 * trained * 7 / 8)
    assert sizes[2]["weights"] == 2 * count
    assert sizes[3]["weights"] == pytest.approx(2 * count / 8 + 2 * weights.largest)
    assert len({size["activations"] for size in sizes.values()}) == 1


def test_the_largest_batch_fits_and_one_more_does_not(model):
    rows, weights, base = Rows(4, 300, 40), Weights.of(model), Layout(gpus=2)
    budget = 0.5 * GIB
    found = memory.choices(model, phase(batch_size=64), rows, weights, base, budget)
    assert found
    for choice in found:
        for batch, fits in ((choice.largest, True), (choice.largest + 1, False)):
            layout = Layout(**{**choice.layout.__dict__, "micro_batch": batch})
            assert (memory.memory(model, phase(), rows, weights, layout)["total"] <= budget) is fits
        assert choice.micro_batch * choice.accumulation == 64 and choice.micro_batch <= choice.largest
    assert memory.choices(model, phase(), rows, weights, base, 1.0) == []
    assert memory.best([], 8) is None
