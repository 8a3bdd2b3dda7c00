"""Stages on the transformers Trainer, DeepSpeed and PEFT: what is trained, how a run is kept, and how it goes on."""

from langdc import devices

devices.tell_deepspeed()  # before transformers is imported, which imports DeepSpeed
