"""Training on the transformers Trainer, DeepSpeed and PEFT: objectives, batches, and the run itself."""

from langdc import devices

devices.tell_deepspeed()  # before transformers is imported, which imports DeepSpeed
