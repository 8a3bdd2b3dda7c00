"""How much is computed at once: what a CPU keeps in its cache, and what keeps an accelerator busy.

What a method makes along the way then never has the size of the video, and costs no new memory from the system.
"""

import torch

BLOCK_BYTES = {"cpu": 1 << 22, "accelerator": 1 << 27}


def block_bytes(device: torch.device) -> int:
    """The bytes to work on at once."""
    return BLOCK_BYTES["cpu" if device.type == "cpu" else "accelerator"]


def at_once(each: float, device: torch.device) -> int:
    """How many things of `each` bytes to work on at once: at least one."""
    return max(1, int(block_bytes(device) // each))
