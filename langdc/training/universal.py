"""Going on with a DeepSpeed checkpoint on another number of processes.

DeepSpeed cuts optimizer states by the number of processes; its universal checkpoint holds them whole, a file per
parameter and state. It is made of an ordinary one only when a run goes on with another number.
"""

import contextlib
import io
import shutil
from argparse import Namespace
from pathlib import Path
from typing import Any

import torch
from transformers.integrations.deepspeed import deepspeed_load_checkpoint

from langdc import distributed
from langdc.distributed import is_main_process, world_size
from langdc.log import get_logger

logger = get_logger(__name__)

LATEST = "latest_universal"  # DeepSpeed's name; written last, so a universal checkpoint cut short does not count
SUFFIX = "_universal"


def saved_processes(checkpoint: Path) -> int:
    """How many processes wrote a DeepSpeed checkpoint."""
    return len(list(_folder(checkpoint).glob("*zero_pp_rank_*_optim_states.pt")))


def load(engine: Any, checkpoint: Path) -> None:
    """Put a checkpoint into an engine, whatever the number of processes that wrote it; frozen weights are not in it.

    With another number, the learning rates are left to the scheduler.
    """
    if saved_processes(checkpoint) == world_size():
        deepspeed_load_checkpoint(engine, str(checkpoint), load_module_strict=False)
        return
    if is_main_process():
        logger.info("%s was written by %d processes; putting it together for %d.",
                    checkpoint.name, saved_processes(checkpoint), world_size())  # fmt: skip
        _convert(checkpoint)
    distributed.barrier()
    groups = [{key: value for key, value in group.items() if key != "params"} for group in _groups(engine)]
    engine._config.load_universal_checkpoint = True
    try:
        deepspeed_load_checkpoint(engine, str(checkpoint), load_module_strict=False)
    finally:
        engine._config.load_universal_checkpoint = False
    for group, own in zip(_groups(engine), groups, strict=True):
        group.update(own)  # for ZeRO-3 DeepSpeed gives all groups the rate and weight decay of the first
    for state in engine.optimizer.optimizer.state.values():
        if isinstance(state.get("step"), torch.Tensor):
            # for ZeRO-3 all share one count, which then grows several times a step
            state["step"] = state["step"].clone()


def _groups(engine: Any) -> list[dict[str, Any]]:
    return engine.optimizer.optimizer.param_groups


def _folder(checkpoint: Path) -> Path:
    return checkpoint / (checkpoint / "latest").read_text().strip()


def _convert(checkpoint: Path) -> None:
    if (checkpoint / LATEST).is_file():
        return
    from deepspeed.checkpoint import ds_to_universal

    source = _folder(checkpoint)
    target = source.with_name(source.name + SUFFIX)
    shutil.rmtree(target, ignore_errors=True)
    options = Namespace(
        input_folder=str(source),
        output_folder=str(target),
        num_extract_workers=1,  # more are forks of this process, whose process group and accelerator do not survive it
        num_merge_workers=1,
        keep_temp_folder=False,
        strict=True,
        inject_missing_state=True,
    )
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        ds_to_universal.main(options)
