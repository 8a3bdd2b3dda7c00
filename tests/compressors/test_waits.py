"""Methods without weights wait for the device a few times per video, never per frame."""

from inspect import signature

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves

from langdc import devices
from langdc.compressors.base import compressors as registry
from langdc.types import FeatureGrid, VideoFeatures

SETTINGS = {name: signature(registry.get(name)).parameters for name in registry.names()}
METHODS = [name for name, settings in SETTINGS.items() if "keep" in settings and "width" not in settings]
WAITING = {"_local_scalar_dense", "nonzero", "masked_select", "_unique2", "bincount", "equal"}


class _Card(TorchDispatchMode):
    """Takes what is computed from given tensors for tensors on a card, until `cpu()`; counts what waits for them."""

    def __init__(self, given: list[Tensor], patch: pytest.MonkeyPatch) -> None:
        super().__init__()
        self.waits: list[str] = []
        self.kept, self.places = list(given), {one.untyped_storage()._cdata for one in given}
        patch.setattr(Tensor, "cpu", self.cpu_of(Tensor.clone))
        patch.setattr(Tensor, "tolist", self.cpu_of(Tensor.tolist))

    def holds(self, tensor: object) -> bool:
        return isinstance(tensor, Tensor) and tensor.untyped_storage()._cdata in self.places

    def cpu_of(self, copy):
        def moved(tensor: Tensor):
            if self.holds(tensor):
                self.waits.append("cpu")
            with _disable_current_modes():
                return copy(tensor)

        return moved

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        name = func.__name__.partition(".")[0]
        if any(map(self.holds, tree_leaves((args, kwargs)))):
            masks = args[1] if name.startswith("index") and isinstance(args[1], list | tuple) else ()
            if name in WAITING or any(self.holds(one) and one.dtype == torch.bool for one in masks):
                self.waits.append(name)
            made = [leaf for leaf in tree_leaves(found) if isinstance(leaf, Tensor)]
            self.kept += made  # so that no place is used twice
            self.places |= {one.untyped_storage()._cdata for one in made}
        return found


def video(frames: int) -> VideoFeatures:
    """Frames that change a little from one to the next, and are cut now and then."""
    dice = torch.Generator().manual_seed(3)
    values = torch.randn(frames, 3, 4, 16, generator=dice)
    for frame in range(1, frames):
        if frame % 7 and frame % 11:
            values[frame] = 0.97 * values[frame - 1] + 0.2 * values[frame]
    return VideoFeatures((FeatureGrid(values),), {}, torch.arange(frames) / 2, torch.randn(5, 16, generator=dice))


@pytest.mark.parametrize("name", METHODS)
def test_waits_do_not_depend_on_the_frames(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(devices._BLOCK_BYTES, "cpu", 1 << 13)  # a few frames at once
    counts = []
    for frames in (20, 90):
        given = video(frames)
        with monkeypatch.context() as patch, _Card([given.projected[0].values], patch) as card:
            registry.build(name, keep=0.25).one(given)
        counts.append(len(card.waits))
    assert counts[0] == counts[1] <= 7, f"{card.waits}"
