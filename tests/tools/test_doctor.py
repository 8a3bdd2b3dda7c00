"""The environment report: complete, honest about what is absent, and one line per thing."""

import importlib.metadata
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from langdc.tools import doctor
from langdc.tools.doctor import _check_environment
from langdc.tools.doctor import _Finding as Finding
from tests.test_language_models import install

ROOT = Path(__file__).resolve().parents[2]


def found() -> dict[str, Finding]:
    return {finding.name: finding for finding in _check_environment()}


def test_reports_every_part_once_with_versions_as_installed():
    names = [finding.name for finding in _check_environment()]
    assert len(names) == len(set(names))
    optional = {"accelerator", "decord", "flash-attn", "torch-npu", "wandb", "compiler"}
    assert {"python", "torch", "deepspeed", "av", *optional} <= set(names)
    assert found()["deepspeed"].detail == importlib.metadata.version("deepspeed")
    assert all(finding.found for finding in _check_environment() if finding.required)
    assert not any(finding.required for finding in _check_environment() if finding.name in optional)


def test_something_absent_is_one_line_of_advice(monkeypatch: pytest.MonkeyPatch):
    def nothing(package: str) -> str:
        raise importlib.metadata.PackageNotFoundError(package)

    monkeypatch.setattr(doctor.importlib.metadata, "version", nothing)
    absent = found()
    for name, state in (("wandb", "optional"), ("decord", "optional"), ("deepspeed", "MISSING")):
        line = str(absent[name])
        assert not absent[name].found and line.startswith(state) and "pip install" in line and "\n" not in line
    assert absent["python"].found, "what does not come from a package is still there"


def test_missing_compiler_names_what_is_lacking(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(doctor.shutil, "which", lambda name: None)
    compiler = found()["compiler"]
    assert not compiler.found and "C++ compiler" in compiler.detail and "offload" in compiler.advice


def test_what_is_there_needs_no_advice():
    there = [finding for finding in _check_environment() if finding.found]
    assert all(finding.advice == "" and str(finding).startswith("ok") for finding in there)


def test_a_card_is_named_and_what_auto_comes_to():
    """With the stand-in of tests/fake_cuda: a device that is asked about and never used."""
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests/fake_cuda")])
    settings = {**os.environ, "PYTHONPATH": paths, "CUDA_VISIBLE_DEVICES": "0"}
    words = [sys.executable, "-m", "langdc.cli", "doctor"]
    done = subprocess.run(words, env=settings, capture_output=True, text=True, check=True)
    lines = {line[10:22].strip(): line[24:] for line in done.stdout.splitlines()}
    assert lines["accelerator"].startswith("cuda: 1 x stand-in, with bfloat16, driver ")
    assert lines["auto"] == "device cuda, dtype bfloat16"
    assert lines["torch"].endswith(f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built for CPU")
    hidden = subprocess.run(words, env={**settings, "CUDA_VISIBLE_DEVICES": ""}, capture_output=True, text=True)
    assert "device cpu, dtype that of the checkpoint" in hidden.stdout


def test_torchcodec_without_the_systems_libraries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    assert "FFmpeg" in found()["torchcodec"].advice
    install(tmp_path, monkeypatch, "torchcodec", "raise OSError('libavutil.so.59: cannot open shared object file')")
    broken = found()["torchcodec"]
    assert not broken.found and broken.detail == "9.9" and "apt install ffmpeg" in broken.advice
