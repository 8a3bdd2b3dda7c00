"""A stand-in for a machine with one CUDA device, in every process that has this folder on its PYTHONPATH.

torch calls `install` at the end of its own import, as of a back end that was installed beside it. It then reports a
device, unless CUDA_VISIBLE_DEVICES hides it, but whatever is put there, or waits for it, raises: there is no driver.
"""

import os
from types import SimpleNamespace

import torch


def _visible() -> bool:
    return os.environ.get("CUDA_VISIBLE_DEVICES") not in ("", "-1")


def install() -> None:
    """Let torch report the device and what can be asked of one that is not used."""
    properties = SimpleNamespace(name="stand-in", major=9, minor=0, total_memory=80 << 30, multi_processor_count=132)
    answers = {
        "is_available": _visible,
        "device_count": lambda: int(_visible()),
        "current_device": lambda: 0,
        "get_device_name": lambda device=None: properties.name,
        "get_device_properties": lambda device=None: properties,
        "get_device_capability": lambda device=None: (properties.major, properties.minor),
        "is_current_stream_capturing": lambda: False,
        "is_bf16_supported": lambda including_emulation=True: _visible(),
    }
    for name, answer in answers.items():
        setattr(torch.cuda, name, answer)
    torch.accelerator.is_available = _visible
    torch.accelerator.device_count = answers["device_count"]
    torch.accelerator.current_device_index = lambda: 0
    torch.accelerator.current_stream = lambda device=None: SimpleNamespace(is_capturing=lambda: False)
    torch.accelerator.current_accelerator = lambda check_available=False: torch.device("cuda") if _visible() else None
