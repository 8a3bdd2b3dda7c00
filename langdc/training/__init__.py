"""Stages on the transformers Trainer, DeepSpeed and PEFT: what is trained, how a run is kept, and how it goes on."""

import os

import torch

if not torch.accelerator.is_available():
    # transformers imports DeepSpeed, which else warns at every start that it falls back to the CPU.
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
