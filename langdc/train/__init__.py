"""Training on the transformers Trainer, DeepSpeed and PEFT: what a run learns (`objectives`), on which batches, and how."""

from langdc import devices

devices.tell_deepspeed()  # before transformers is imported, which imports DeepSpeed
