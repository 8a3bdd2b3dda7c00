"""Training on the transformers Trainer, DeepSpeed and PEFT: what a run learns (`objectives`), and how it steps."""

from langdc import devices

devices.tell_deepspeed()  # before transformers is imported, which imports DeepSpeed
