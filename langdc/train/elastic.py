"""Elastic resume: continue from a DeepSpeed checkpoint with another number of processes.

DeepSpeed partitions optimizer states by the number of processes; its universal checkpoint holds them whole, a file per
parameter and state. It is made of an ordinary checkpoint only when the number changes.
"""

import contextlib
import io
import shutil
from argparse import Namespace
from pathlib import Path
from typing import Any

import torch
from transformers.integrations.deepspeed import deepspeed_load_checkpoint

from langdc import distributed, jsonl
from langdc.log import get_logger

logger = get_logger(__name__)

CONVERTED = "universal"  # a file, written when all is on the disk, so a universal checkpoint cut short does not count


def load(engine: Any, checkpoint: Path) -> None:
    """Load a checkpoint into an engine, written by any number of processes; frozen weights are not in it.

    With another number, the learning rates are left to the scheduler.
    """
    folder = checkpoint / (checkpoint / "latest").read_text().strip()
    before = len(list(folder.glob("*zero_pp_rank_*_optim_states.pt")))
    if before == distributed.world_size():
        deepspeed_load_checkpoint(engine, str(checkpoint), load_module_strict=False)
        return
    logger.info("Converting %s from %d processes to %d.", checkpoint.name, before, distributed.world_size())
    distributed.main_process_first(lambda: _convert(checkpoint, folder))
    groups: list[dict[str, Any]] = engine.optimizer.optimizer.param_groups
    own = [{key: value for key, value in group.items() if key != "params"} for group in groups]
    engine._config.load_universal_checkpoint = True
    try:
        deepspeed_load_checkpoint(engine, str(checkpoint), load_module_strict=False)
    finally:
        engine._config.load_universal_checkpoint = False
    for group, settings in zip(engine.optimizer.optimizer.param_groups, own, strict=True):
        group.update(settings)  # for ZeRO-3 DeepSpeed gives all groups the rate and weight decay of the first
    for state in engine.optimizer.optimizer.state.values():
        if isinstance(state.get("step"), torch.Tensor):
            # for ZeRO-3 all share one count, which then grows several times a step
            state["step"] = state["step"].clone()


def _convert(checkpoint: Path, source: Path) -> None:
    if (checkpoint / CONVERTED).is_file():
        return
    from deepspeed.checkpoint import ds_to_universal

    target = source.with_name(f"{source.name}_universal")
    shutil.rmtree(target, ignore_errors=True)
    # more workers are forks of this process, whose process group and accelerator do not survive it
    options = Namespace(
        input_folder=str(source),
        output_folder=str(target),
        num_extract_workers=1,
        num_merge_workers=1,
        keep_temp_folder=False,
        strict=True,
        inject_missing_state=True,
    )
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        ds_to_universal.main(options)
    jsonl.sync_folder(checkpoint)
    jsonl.write_text(checkpoint / CONVERTED, "")
