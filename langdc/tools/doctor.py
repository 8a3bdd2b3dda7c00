"""`langdc doctor`: what is installed here, what is missing, and whether that matters.

Packages are looked up by their metadata, and imported only where that is no proof and a broken one stops nothing.
"""

import argparse
import importlib.metadata
import platform
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from langdc import devices
from langdc.log import screen

_REQUIRED = ("transformers", "deepspeed", "peft", "accelerate", "datasets", "av", "safetensors", "pydantic")
_OPTIONAL = {
    "decord": "videos are read with PyAV; pip install decord (Linux and Windows, x86-64) for another decoder",
    "torchcodec": "another decoder, for which the system's FFmpeg libraries are needed: pip install torchcodec",
    "flash-attn": "attention runs on sdpa; pip install 'langdc[flash]' on a CUDA machine",
    "torch-npu": "only Ascend NPUs need it; pip install 'langdc[npu]'",
    "wandb": "runs are logged to JSON lines; pip install wandb to track them there too",
    "tensorboard": "another tracker; pip install 'langdc[tensorboard]'",
    "bitsandbytes": "quantize: nf4 (QLoRA) needs it; pip install 'langdc[qlora]'",
    "ray": "langdc data caption --ray needs it, on many machines; pip install 'langdc[ray]'",
    "gradio": "langdc demo, a page to try a model, needs it; pip install 'langdc[demo]'",
    "liger-kernel": "norms and feed-forward layers are the model's own; pip install 'langdc[liger]'",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Print a line for each thing; 0 whatever is missing."""
    argparse.ArgumentParser(prog="langdc doctor", description=__doc__).parse_args(argv)
    console = screen()
    for finding in _check_environment():
        console.print(str(finding))
    return 0


@dataclass(frozen=True)
class _Finding:
    """The state of one thing: whether it was `found`, a `detail` such as its version, and `advice` if not.

    `required`: without it the sample does not train. The project works without the others.
    """

    name: str
    found: bool
    detail: str
    advice: str = ""
    required: bool = False

    def __str__(self) -> str:
        state = "ok" if self.found else "MISSING" if self.required else "optional"
        return f"{state:8}  {self.name:12}  {self.detail}{f': {self.advice}' if self.advice else ''}"


def _check_environment() -> list[_Finding]:
    """Look at everything the project can use; required things first."""
    built = (torch.version.cuda and f"CUDA {torch.version.cuda}") or torch.version.hip or "CPU"
    threads = f"{torch.get_num_threads()} threads, built for {built}"
    return [
        _Finding("python", True, f"{platform.python_version()} on {sys.platform}", required=True),
        _Finding("torch", True, f"{torch.__version__}, {threads}", required=True),
        *(_package(name, "reinstall with: pip install -e .", required=True) for name in _REQUIRED),
        *_accelerator(),
        *(_package(name, advice) for name, advice in _OPTIONAL.items()),
        _compiler(),
    ]


def _installed_version(package: str) -> str | None:
    """The version of an installed distribution, None when it is absent."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _package(name: str, advice: str, required: bool = False) -> _Finding:
    version = _installed_version(name)
    if version is None:
        return _Finding(name, False, "not installed", advice, required)
    trouble = None
    if name == "torchcodec":
        try:
            from langdc.decoders import decoder_trouble

            trouble = decoder_trouble(name)
        except ImportError as error:  # of PyAV, which that module needs
            trouble = str(error)
    return _Finding(name, trouble is None, version, trouble or "", required)


def _accelerator() -> list[_Finding]:
    """The devices, their driver, and what `device: auto` and `dtype: auto` come to here."""
    where = devices.device()
    kept_in = str(devices.dtype_named("auto", where) or "that of the checkpoint").removeprefix("torch.")
    chosen = _Finding("auto", True, f"device {where.type}, dtype {kept_in}")
    if where.type == devices.CPU.name:
        advice = "the sample trains on the CPU; the full size needs a GPU or NPU"
        if torch.version.cuda and not torch.cuda.is_available() and shutil.which("nvidia-smi"):
            advice = f"there is an NVIDIA driver ({_driver()}), and torch for CUDA {torch.version.cuda} cannot use it"
        return [_Finding("accelerator", False, "none", advice), chosen]
    module: Any = torch.get_device_module(where)
    name = getattr(module, "get_device_name", lambda number: where.type)  # Apple's have none
    named = [name(number) for number in range(module.device_count())]
    cards = ", ".join(f"{named.count(name)} x {name}" for name in dict.fromkeys(named))
    half = "with bfloat16" if getattr(module, "is_bf16_supported", lambda: True)() else "without bfloat16"
    driver = f", driver {_driver()}" if where.type == "cuda" and torch.version.cuda else ""
    return [_Finding("accelerator", True, f"{where.type}: {cards}, {half}{driver}"), chosen]


def _driver() -> str:
    """The version of NVIDIA's driver, and "unknown" without its tool."""
    command = ("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=20).stdout.split()
    except (OSError, subprocess.TimeoutExpired):
        found = []
    return found[0] if found else "unknown"


def _compiler() -> _Finding:
    """DeepSpeed compiles some operations when they are first used, such as Adam for weights kept in main memory."""
    compiler = next((name for name in ("c++", "g++", "clang++") if shutil.which(name)), None)
    there = {
        "a C++ compiler": compiler is not None,
        "Python.h": (Path(sysconfig.get_paths()["include"]) / "Python.h").is_file(),
        "ninja": _installed_version("ninja") is not None or shutil.which("ninja") is not None,
    }
    if not all(there.values()):
        missing = ", no ".join(name for name, found in there.items() if not found)
        advice = "DeepSpeed's CPU offload cannot be compiled; install g++, python3-dev and ninja to use it"
        return _Finding("compiler", False, f"no {missing}", advice)
    return _Finding("compiler", True, f"{compiler} and ninja, for DeepSpeed's CPU offload")
