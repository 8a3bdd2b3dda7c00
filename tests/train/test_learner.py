"""A micro-step on the meta device, whose values nobody can read: so nothing in it waits for a device."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from langdc.backbones import backbones
from langdc.train.batches import TrainingData
from langdc.train.trainable import unfreeze
from langdc.types import Frames
from tests import stock, tiny
from tests.train import small

META = torch.device("meta")


class Transfers(TorchDispatchMode):
    """Copies from the host to the stand-in: bytes by the type that goes over, which is the one that is asked for, since
    a copy with a change of type changes it on the host; and how many of them would wait.
    """

    def __init__(self) -> None:
        super().__init__()
        self.bytes: dict[torch.dtype, int] = {}
        self.waiting = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func._overloadpacket.__name__
        if name in ("_to_copy", "copy_"):
            source, waits = args[0] if name == "_to_copy" else args[1], not (kwargs or {}).get("non_blocking", False)
            if name == "copy_":
                waits = not (len(args) > 2 and args[2])
            if source.device.type == "cpu" and out.device == META and source.ndim:
                self.bytes[out.dtype] = self.bytes.get(out.dtype, 0) + out.numel() * out.itemsize
                self.waiting += waits
        return out


def online(objective: str, **settings: Any) -> tuple[TrainingData, dict[str, Any]]:
    """A micro-batch of three videos that are encoded in the step."""
    model = tiny.model("langdc", max_soft_tokens=32, segment_marker=True, **settings)
    unfreeze(model, ["compressor.*"])
    data = small.data_of(model, small.run_config(model, "train", objective=objective, feature_memory=0.0))
    return data, small.batch_of(data, 0, 1, 2)


@pytest.mark.parametrize("base", [None, {"name": "pool", "sides": [3, 2]}], ids=["captions", "dual"])
@pytest.mark.parametrize("objective", ["compress", "answer"])
def test_a_micro_step_waits_for_nothing_and_moves_the_bytes_of_its_frames(objective: str, base: dict | None):
    data, batch = online(objective, base=base)
    pixels = sum(video.pixels.nbytes for video in batch["batch"].frames)
    learner = small.learner_of(data).train().to(META)
    counts = {name: torch.tensor(count) for name, count in [*batch["counts"].items(), ("batches", 1)]}
    with Transfers() as seen:
        learner(**batch, num_items_in_batch=counts)["loss"].backward()
    assert pixels > 0 and seen.bytes.pop(torch.uint8) == pixels
    assert seen.bytes.keys() <= {torch.int64}, "ids, labels and positions, besides"
    assert seen.waiting == 0
    assert all(p.grad is not None for n, p in data.model.named_parameters() if "projectors" in n and p.requires_grad)


def test_on_meta_a_value_that_is_read_is_an_error():
    """What the test above stands on."""
    with pytest.raises(RuntimeError, match="item"):
        torch.ones(1, device=META).item()
    with pytest.raises(NotImplementedError, match="no data"):
        torch.ones(1, device=META).cpu()


def test_stored_features_move_in_the_type_they_are_stored_in():
    model = tiny.model("pool")
    data = small.data_of(model, small.run_config(model, "train"), dtype="bfloat16")
    batch = small.batch_of(data, 0, 1)
    stored = [grid.values for grids in batch["batch"].raw for grid in grids.values()]
    model.to(META)
    with Transfers() as seen:
        found = model.features(batch["batch"])
    assert seen.bytes == {torch.bfloat16: sum(values.nbytes for values in stored)} and seen.waiting == 0
    assert found[0].projected[0].values.dtype == torch.float32


@pytest.mark.parametrize("objective", ["compress", "answer"])
def test_padding_is_what_fills_the_rows_of_a_batch(objective: str):
    data, batch = online(objective)
    learner = small.learner_of(data)
    widths = []
    part = data.model.compressor.captioner.language_model if objective == "compress" else data.model.backbone.text_model
    part = getattr(part, "model", part)
    hook = part.register_forward_pre_hook(
        lambda _, __, given: widths.append(given["inputs_embeds"].shape[:2]), with_kwargs=True
    )
    learner(**batch)
    hook.remove()
    ((rows, longest),) = widths
    assert learner.figures["tokens"] + learner.figures["padding"] == rows * longest
    assert 0 < learner.figures["padding"] < learner.figures["tokens"]


@pytest.mark.parametrize("trained", ["image", "video"])
def test_both_encoders_encode_where_one_is_trained(trained: str):
    model = tiny.model("langdc")
    unfreeze(model, [f"backbone.encoders.{trained}.*"])
    data = small.data_of(model, small.run_config(model, "train", objective="answer"))
    learner, batch = small.learner_of(data), small.batch_of(data, 0)
    expected = learner(**batch)["loss"]
    with learner.engine_parts():
        torch.testing.assert_close(learner(**batch)["loss"], expected)


@pytest.mark.parametrize("count", [1, 8])
@pytest.mark.parametrize("name", stock.NAMES)
def test_frames_of_stock_models_are_prepared_where_the_encoder_is(name: str, count: int):
    """By the stock processors, from as many bytes as the frames have."""
    model: Any = backbones.build(name, source=stock.folder(name))
    video = stock.clip(count=count)
    prepare: Callable[[Frames], Any] = getattr(model, "patches_of", None) or model._pixels
    model.to(META)
    with Transfers() as seen:
        found = prepare(video)
    found = found[0] if isinstance(found, tuple) else found
    assert isinstance(found, Tensor) and found.device == META
    assert seen.bytes.pop(torch.uint8) == video.pixels.nbytes
    assert sum(seen.bytes.values()) < 100, "means and deviations"
