"""`langdc doctor`: what is installed here, what is missing, and whether that matters.

Packages are looked up by their metadata, not imported, so that a broken one cannot stop the report.
"""

import argparse
import importlib.metadata
import platform
import shutil
import sys
import sysconfig
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from langdc.log import screen

_REQUIRED = ("transformers", "deepspeed", "peft", "accelerate", "datasets", "av", "safetensors", "pydantic")


def main(argv: Sequence[str] | None = None) -> int:
    """Print a line for each thing; 0 whatever is missing."""
    argparse.ArgumentParser(prog="langdc doctor", description=__doc__).parse_args(argv)
    console = screen()
    for finding in check_environment():
        console.print(str(finding))
    return 0


@dataclass(frozen=True)
class Finding:
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


def check_environment() -> list[Finding]:
    """Look at everything the project can use; required things first."""
    return [
        _python(),
        _torch(),
        *(_package(name, "reinstall with: pip install -e .", required=True) for name in _REQUIRED),
        *(look() for look in _OPTIONAL),
    ]


def _installed_version(package: str) -> str | None:
    """The version of an installed distribution, None when it is absent."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _python() -> Finding:
    enough = sys.version_info >= (3, 11)
    advice = "" if enough else "Python 3.11 or newer is needed"
    return Finding("python", enough, f"{platform.python_version()} on {sys.platform}", advice, required=True)


def _torch() -> Finding:
    built = [part for part in (torch.version.cuda and f"CUDA {torch.version.cuda}", torch.version.hip) if part]
    detail = f"{torch.__version__}, {torch.get_num_threads()} threads, built for {built[0] if built else 'CPU'}"
    return Finding("torch", True, detail, required=True)


def _package(name: str, advice: str, required: bool = False) -> Finding:
    version = _installed_version(name)
    return Finding(name, version is not None, version or "not installed", "" if version else advice, required)


def _accelerator() -> Finding:
    if not torch.accelerator.is_available():
        return Finding("accelerator", False, "none", "the sample trains on the CPU; the full size needs a GPU or NPU")
    kind = torch.accelerator.current_accelerator()
    return Finding("accelerator", True, f"{torch.accelerator.device_count()} x {kind.type if kind else 'unknown'}")


def _decord() -> Finding:
    return _package(
        "decord", "videos are read with PyAV; pip install decord (Linux and Windows, x86-64) for another decoder"
    )


def _flash_attention() -> Finding:
    return _package("flash-attn", "attention runs on sdpa; pip install 'langdc[flash]' on a CUDA machine")


def _torch_npu() -> Finding:
    return _package("torch-npu", "only Ascend NPUs need it; pip install 'langdc[npu]'")


def _wandb() -> Finding:
    return _package("wandb", "runs are logged to JSON lines; pip install wandb to track them there too")


def _tensorboard() -> Finding:
    return _package("tensorboard", "another tracker; pip install 'langdc[tensorboard]'")


def _bitsandbytes() -> Finding:
    return _package("bitsandbytes", "quantize: nf4 (QLoRA) needs it; pip install 'langdc[qlora]'")


def _liger() -> Finding:
    return _package("liger-kernel", "norms and feed-forward layers are the model's own; pip install 'langdc[liger]'")


def _compiler() -> Finding:
    """DeepSpeed compiles some operations when they are first used, such as Adam for weights kept in main memory."""
    compilers = [name for name in ("c++", "g++", "clang++") if shutil.which(name)]
    lacking = [] if compilers else ["a C++ compiler"]
    if not _has_headers():
        lacking.append("Python.h")
    if _installed_version("ninja") is None and shutil.which("ninja") is None:
        lacking.append("ninja")
    if lacking:
        advice = "DeepSpeed's CPU offload cannot be compiled; install g++, python3-dev and ninja to use it"
        return Finding("compiler", False, f"no {', no '.join(lacking)}", advice)
    return Finding("compiler", True, f"{compilers[0]} and ninja, for DeepSpeed's CPU offload")


def _has_headers() -> bool:
    return (Path(sysconfig.get_paths()["include"]) / "Python.h").is_file()


_OPTIONAL: tuple[Callable[[], Finding], ...] = (
    _accelerator,
    _decord,
    _flash_attention,
    _torch_npu,
    _wandb,
    _tensorboard,
    _bitsandbytes,
    _liger,
    _compiler,
)
