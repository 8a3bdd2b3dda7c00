"""`langdc doctor`: what is installed here, what is missing, and whether that matters.

Packages are looked up by their metadata, not imported, so that a broken one cannot stop the report.
"""

import argparse
import importlib.metadata
import platform
import shutil
import sys
import sysconfig
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from langdc.log import screen

_REQUIRED = ("transformers", "deepspeed", "peft", "accelerate", "datasets", "av", "safetensors", "pydantic")
_OPTIONAL = {
    "decord": "videos are read with PyAV; pip install decord (Linux and Windows, x86-64) for another decoder",
    "flash-attn": "attention runs on sdpa; pip install 'langdc[flash]' on a CUDA machine",
    "torch-npu": "only Ascend NPUs need it; pip install 'langdc[npu]'",
    "wandb": "runs are logged to JSON lines; pip install wandb to track them there too",
    "tensorboard": "another tracker; pip install 'langdc[tensorboard]'",
    "bitsandbytes": "quantize: nf4 (QLoRA) needs it; pip install 'langdc[qlora]'",
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
        _accelerator(),
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
    return _Finding(name, version is not None, version or "not installed", "" if version else advice, required)


def _accelerator() -> _Finding:
    if not torch.accelerator.is_available():
        return _Finding("accelerator", False, "none", "the sample trains on the CPU; the full size needs a GPU or NPU")
    kind = torch.accelerator.current_accelerator()
    return _Finding("accelerator", True, f"{torch.accelerator.device_count()} x {kind.type if kind else 'unknown'}")


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
