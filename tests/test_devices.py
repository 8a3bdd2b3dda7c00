"""The kind of device is chosen in one place; an Ascend NPU is played by a stand-in for torch-npu."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from langdc import devices

ROOT = Path(__file__).parents[1]

PLANS = [
    f"tests/tools/test_plan.py::{name}"
    for name in ("test_zero_divides_and_checkpointing_saves", "test_a_full_size_recipe_is_planned_without_its_weights")
]

# Who starts a run decides where it runs; all else goes by where its tensors or its model are.
ASK_THE_MACHINE = {
    "langdc/conformance/test_frameselector.py",  # a selector's model runs where users have it
    "langdc/devices.py",
    "langdc/distributed.py",
    "langdc/evaluate/identity.py",  # names the hardware in a header
    "langdc/evaluate/loop.py",
    "langdc/pipeline.py",
    "langdc/prepare/features.py",
    "langdc/prepare/preview.py",
    "langdc/tools/doctor.py",
    "langdc/train/arguments.py",
    "langdc/train/meter.py",
    "langdc/train/run.py",
}

STAND_IN = """
import types, torch
torch.utils.rename_privateuse1_backend("npu")
calls = []
def told(name, answer=None):
    return lambda *given: (calls.append([name, *map(str, given)]), answer)[1]
module = types.ModuleType("torch.npu")
module.is_available = told("is_available", {there})
module.set_device = told("set_device")
module.synchronize = told("synchronize")
module.reset_peak_memory_stats = told("reset_peak_memory_stats")
module.max_memory_allocated = told("max_memory_allocated", 4096)
torch._register_device_module("npu", module)
"""

PROGRAM = """
import json, os, torch, torch_npu
import torch.distributed as dist
import langdc.train
from langdc import devices, distributed
joined = []
dist.init_process_group = lambda backend, **more: joined.append(backend)
distributed.start()
where = devices.device()
devices.synchronize(); devices.synchronize(where); devices.reset_peak(where)
found = {"device": str(where), "kind": devices.kind().name, "deepspeed": os.environ.get("DS_ACCELERATOR")}
found.update(joined=joined, peak=devices.peak_bytes(where), calls=torch_npu.calls)
print(json.dumps(found))
"""


def with_npu(folder: Path, there: bool) -> dict:
    """What a process with a torch-npu (whose device is there, or not) chooses, as local rank 3 of a run."""
    (folder / "torch_npu.py").write_text(STAND_IN.format(there=there))
    launcher = {"RANK": "3", "LOCAL_RANK": "3", "WORLD_SIZE": "4", "CUDA_VISIBLE_DEVICES": ""}
    environment = {**os.environ, **launcher, "PYTHONPATH": f"{folder}{os.pathsep}{ROOT}"}
    environment.pop("DS_ACCELERATOR", None)
    command = [sys.executable, "-c", PROGRAM]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_an_npu_is_found_and_talks_by_hccl(tmp_path: Path):
    found = with_npu(tmp_path, there=True)
    assert (found["kind"], found["device"], found["joined"]) == ("npu", "npu:3", ["hccl"])
    assert found["deepspeed"] == "npu" and found["peak"] == 4096
    names = [call[0] for call in found["calls"]]
    assert ["set_device", "3"] in found["calls"] and names.count("synchronize") == 2
    assert ["reset_peak_memory_stats", "npu:3"] in found["calls"]


def test_torch_npu_without_a_device_leaves_the_cpu(tmp_path: Path):
    found = with_npu(tmp_path, there=False)
    assert (found["kind"], found["device"], found["joined"]) == ("cpu", "cpu", ["gloo"])
    assert found["deepspeed"] == "cpu" and found["peak"] is None


@pytest.fixture
def fresh():
    devices.kind.cache_clear()
    yield
    devices.kind.cache_clear()


def test_cards_talk_by_nccl(monkeypatch, fresh):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert devices.kind() == devices._Kind("cuda", "nccl")
    assert devices.device(2) == torch.device("cuda", 2)


def test_a_machine_without_any_is_a_cpu(monkeypatch, fresh):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    assert devices.kind() == devices.CPU and devices.device(1) == torch.device("cpu")
    devices.select(torch.device("cpu"))
    devices.synchronize()
    devices.reset_peak(torch.device("cpu"))
    assert devices.peak_bytes(torch.device("cpu")) is None


def test_the_users_choice_for_deepspeed_stays(monkeypatch):
    monkeypatch.setenv("DS_ACCELERATOR", "xpu")
    devices.tell_deepspeed()
    assert os.environ["DS_ACCELERATOR"] == "xpu"


def test_a_device_is_found_by_its_name(monkeypatch, fresh):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for name in ("auto", None):
        assert devices.named(name) == torch.device("cuda", 0)
    for name in ("cuda", "cuda:1", "cpu", torch.device("cuda:1")):
        assert devices.named(name) == torch.device(name)
    with pytest.raises(ValueError, match=r"device 'cuda:2' is not on .* here: cpu, cuda, cuda:0"):
        devices.named("cuda:2")


@pytest.mark.parametrize("name", ["cuda", "cuda:1", "npu", "gpu", "", "meta", "CPU 0"])
def test_a_device_that_is_not_here_is_refused(monkeypatch, fresh, name: str):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    with pytest.raises(ValueError, match=rf"device '{name}' is not on this machine. Allowed are auto .* here: cpu\."):
        devices.named(name)
    assert devices.named() == torch.device("cpu")


def test_the_type_that_auto_is_depends_on_the_device():
    assert devices.dtype_named("auto", torch.device("cpu")) is None
    assert devices.dtype_named("auto", torch.device("cuda", 1)) == torch.bfloat16
    for name in ("float16", torch.float16):
        assert devices.dtype_named(name, torch.device("cpu")) == torch.float16
    for name in ("half", "float64", "", torch.int8):
        with pytest.raises(ValueError, match=r"dtype is .*; allowed are auto, float32, bfloat16, float16"):
            devices.dtype_named(name, torch.device("cpu"))


def test_weights_are_made_where_and_in_the_type_that_is_asked():
    with pytest.raises(KeyError), devices.making(torch.device("meta"), torch.bfloat16):
        made = torch.nn.Linear(2, 2).weight
        assert made.is_meta and made.dtype == torch.bfloat16
        raise KeyError
    made = torch.nn.Linear(2, 2).weight
    assert not made.is_meta and made.dtype == torch.float32


def test_only_who_starts_a_run_asks_what_the_machine_has():
    devices_of = r"devices\.(kind|has_accelerator|device|named)\("
    torchs = r"(cuda|accelerator)\.(is_available|device_count|current_accelerator|current_device)"
    found = {
        str(file.relative_to(ROOT))
        for folder in ("langdc", "train", "eval", "data_prep")
        for file in (ROOT / folder).rglob("*.py")
        if re.search(f"{devices_of}|{torchs}", file.read_text())
    }
    assert found == ASK_THE_MACHINE


@pytest.mark.slow
def test_parts_stay_where_they_are_on_a_machine_with_a_card():
    """A model trains on the CPU, and a plan reads no weights, beside a device that whoever touches it fails on."""
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests/fake_cuda")])
    tests = ("tests/contract/test_training.py::test_five_steps_lower_the_loss[qwen2_5_vl-langdc]", *PLANS)
    settings = {**os.environ, "PYTHONPATH": paths, "CUDA_VISIBLE_DEVICES": "0"}
    words = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", *tests]
    done = subprocess.run(words, cwd=ROOT, env=settings, capture_output=True, text=True)
    assert done.returncode == 0 and "3 passed" in done.stdout, done.stdout[-3000:]
