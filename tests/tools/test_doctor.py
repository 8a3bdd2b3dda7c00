"""The environment report: complete, honest about what is absent, and one line per thing."""

import importlib.metadata

import pytest

from langdc.tools import doctor
from langdc.tools.doctor import _check_environment
from langdc.tools.doctor import _Finding as Finding


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
