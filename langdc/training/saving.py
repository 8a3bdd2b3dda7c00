"""The proof of a save: a fresh process loads what a phase wrote, and finds what was trained.

ZeRO-3 cuts parameters up among processes, and only those that are saved are whole while the first process writes. What
the proof needs of the others all processes read together before.
"""

import time
from collections.abc import Collection
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from langdc.distributed import is_main_process
from langdc.language_models import FLASH
from langdc.log import get_logger
from langdc.model import VideoModel
from langdc.verify import Fingerprint, fingerprint, prepare, probe, typed_hash, verify_saved

logger = get_logger(__name__)

PUBLISHED = "compressor.captioner.language_model."


class Proof:
    """Compares what a phase saves with the model that it trained; does nothing unless `wanted`."""

    def __init__(self, model: VideoModel, wanted: bool) -> None:
        self.model = model
        self.wanted = wanted
        self._hashes: dict[int, list[str]] = {}
        self._logits: list[float] | None = None

    def look(self) -> None:
        """Read what no process has whole, before the save, by all processes; nothing to do without ZeRO-3."""
        cut = [parameter for parameter in self.model.parameters() if hasattr(parameter, "ds_id")]
        if not cut or not self.wanted:
            return
        import deepspeed  # it cut them, so it is there

        for parameter in cut:
            if not parameter.requires_grad:
                with deepspeed.zero.GatheredParameters([parameter]):
                    if is_main_process():
                        self._hashes[id(parameter)] = typed_hash(parameter)
        # markers are read without a call of the module that holds them, so nobody would bring them
        with deepspeed.zero.GatheredParameters(list(self.model.compressor.parameters(recurse=False))):
            self._logits = self._probe()

    def compare(self, directory: Path, saved: Collection[str]) -> dict[str, Any] | None:
        """Load a directory in a fresh process; how many tensors were equal, how far the logits are apart, and seconds.

        `saved`: names of the tensors in it. Called by the first process while those are whole. ValueError names what
        differs. The logits are left out where they cannot be compared; then "logits" says why.
        """
        if not self.wanted:
            return None
        started = time.monotonic()
        reason = self._incomparable(saved)
        cut = {id(part): self._hashes[id(part)] for part in self.model.parameters() if _is_cut(part)}
        tensors = fingerprint(self.model, logits=False, known=cut)
        logits = [] if reason else self._probe() if self._logits is None else self._logits
        expected = Fingerprint(tensors.tensors, logits, packed=tensors.packed)
        try:
            seen = verify_saved(directory, expected)
        except ValueError as error:
            raise ValueError(
                f"{error}\nThe run does not count as finished. The same command goes on from its last checkpoint and "
                "saves again; --no-verify-save skips this comparison."
            ) from None
        told = f"leaving out the logits: {reason}" if reason else "and the same logits"
        logger.info("%s: a fresh process loaded the same %d tensors, %s.", directory, seen.tensors, told)
        seconds = round(time.monotonic() - started, 1)
        return {"tensors": seen.tensors, "logits": reason or seen.difference, "seconds": seconds}

    def _probe(self) -> list[float]:
        for part in self.model.modules():
            if isinstance(part, PreTrainedModel) and part.config._attn_implementation == FLASH:
                part.set_attn_implementation("sdpa")  # flash-attn reads no float32
        return probe(self.model).tolist()

    def _incomparable(self, saved: Collection[str]) -> str:
        """Why the logits here and in a fresh process would differ though all is well; empty if they would not."""
        if any(not parameter.is_floating_point() for parameter in self.model.parameters()):
            return "the language model is in 4 bits here, and whole in the process that reads it back"
        drawn = [name for name, _ in self.model.named_parameters() if name.startswith("backbone.projectors.")]
        if "projected" in self.model.compressor.needs and not set(drawn) <= set(saved):
            return "no stage has trained the backbone's projectors yet, and every load draws them anew"
        return ""


def begin(wanted: bool) -> None:
    """Let the process that will read the saves import what it needs, beside the training."""
    if wanted and is_main_process():
        prepare()


def drawn_parameters(model: VideoModel) -> dict[str, nn.Parameter]:
    """What of a compressor no published part holds, trained or not: a checkpoint without it would load at random."""
    published = isinstance(model.config.compressor.settings.get("captioner"), str)  # else it is drawn, too
    return {
        name: parameter
        for name, parameter in model.named_parameters()
        if name.startswith("compressor.") and not (published and name.startswith(PUBLISHED))
    }


def _is_cut(parameter: nn.Parameter) -> bool:
    return hasattr(parameter, "ds_id") and parameter.numel() != parameter.ds_numel  # pyright: ignore[reportAttributeAccessIssue]
