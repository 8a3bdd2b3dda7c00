"""The settings of a run as the transformers Trainer takes them."""

import importlib.util
import os
from pathlib import Path

from transformers import TrainingArguments
from transformers.trainer_utils import SchedulerType

from langdc import devices, jsonl
from langdc.config import RunConfig
from langdc.distributed import is_main_process, world_size
from langdc.interfaces import Objective
from langdc.registry import nearest
from langdc.train.objectives import objectives

ADVICE = {"wandb": "wandb (WANDB_MODE=offline needs no account)", "tensorboard": "'langdc[tensorboard]'"}


def check_environment(config: RunConfig) -> None:
    """ValueError for what this machine cannot do; called before the model is built."""
    schedules = [kind.value for kind in SchedulerType]
    if config.train.schedule not in schedules:
        hint = nearest(config.train.schedule, schedules)
        raise ValueError(f"train.schedule: there is no {config.train.schedule!r}.{hint}")
    if config.precision == "float16" and not devices.has_accelerator():
        raise ValueError("precision: float16 needs an accelerator; on a CPU use float32 or bfloat16.")
    _check_validation(config)
    for tracker in config.trackers:
        if importlib.util.find_spec(tracker) is None:
            advice = f"pip install {ADVICE[tracker]}, or take it off the list"
            raise ValueError(f"trackers: {tracker} is not installed. {advice}.")
    if "wandb" in config.trackers and is_main_process() and not os.environ.get("WANDB_DISABLED"):
        import wandb

        try:
            wandb.login()  # asks for a key where there is a terminal; does nothing in offline mode
        except Exception as error:  # its errors and those of the network have no class in common
            raise ValueError(
                f"trackers: wandb cannot be used ({' '.join(str(error).split())}). Log in with `wandb login`, set "
                "WANDB_MODE=offline, or take it off the list."
            ) from None


def _check_validation(config: RunConfig) -> None:
    held_out, objective = config.train.validation, objectives.get(config.objective.name)
    if (held_out or config.train.ema) and objective.solve is not Objective.solve:
        raise ValueError(
            f"The objective {config.objective.name!r} is solved at once, without steps to measure or average. Leave "
            "out train.validation and train.ema."
        )
    if held_out is None or not held_out.accuracy:
        return
    if not objective.reads:
        raise ValueError(
            f"train.validation.accuracy: the objective {config.objective.name!r} does not call the language model, so "
            "there are no replies to score. Leave it out."
        )
    if zero_stage(config) == 3:
        raise ValueError(
            "train.validation.accuracy: under ZeRO-3 each token of a reply would gather all parameters. Use ZeRO-2 or "
            "none, or leave it out and keep the loss."
        )


def zero_stage(config: RunConfig) -> int:
    """The stage of ZeRO that the DeepSpeed settings name; 0 without."""
    settings = {} if config.deepspeed is None else jsonl.read_json(config.deepspeed)
    return settings.get("zero_optimization", {}).get("stage", 0)


def training_arguments(config: RunConfig, directory: Path, name: str) -> TrainingArguments:
    """The Trainer's settings; `directory` is where it keeps checkpoints, `name` what trackers call the run."""
    train = config.train
    arguments = TrainingArguments(
        output_dir=str(directory),
        run_name=name,
        seed=config.seed,
        data_seed=config.seed,
        use_cpu=not devices.has_accelerator(),
        bf16=config.precision == "bfloat16",
        fp16=config.precision == "float16",
        deepspeed=str(config.deepspeed) if config.deepspeed else None,
        per_device_train_batch_size=train.batch_size,
        gradient_accumulation_steps=train.gradient_accumulation,
        max_steps=train.steps or -1,
        num_train_epochs=train.epochs or 1.0,
        learning_rate=train.learning_rate,
        adam_beta2=train.adam_beta2,
        lr_scheduler_type=train.schedule,
        warmup_steps=train.warmup,
        weight_decay=train.weight_decay,
        max_grad_norm=train.clip,
        save_steps=config.save_steps,
        logging_steps=config.log_steps,
        logging_nan_inf_filter=False,
        report_to=list(config.trackers) or "none",
        dataloader_num_workers=config.workers,
        disable_tqdm=True,
        log_level="error",
        log_level_replica="error",
    )
    if world_size() == 1 and arguments.device.type != "cpu":
        arguments._n_gpu = 1  # several cards and plain python would mean DataParallel, which divides batches blindly
    return arguments
