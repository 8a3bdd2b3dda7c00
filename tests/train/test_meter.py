"""Figures of steps: what they are made of, with a clock that stands still where no time may count."""

import time

import pytest
import torch
from torch import nn

from langdc.train import meter as meters
from langdc.train.meter import Meter, _peak_flops


class Told(nn.Module):
    figures = {"samples": 4, "tokens": 400, "padding": 100, "soft_tokens": 30, "segments": 10}  # noqa: RUF012 - as modules have it
    parts = {"caption": (torch.tensor(20.0), 10)}  # noqa: RUF012


@pytest.fixture
def clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(meters.time, "perf_counter", lambda: now[0])
    return now


def test_figures_are_of_the_steps_since_the_last_ones(clock):
    meter = Meter(Told(), peak=50.0)
    for _ in range(2):
        with meter.waiting(total_flops=1000.0):
            clock[0] += 1.0
        clock[0] += 3.0
        meter.add()
    with meter.pause():
        clock[0] += 77.0
    found = meter.figures(total_flops=1200.0)
    assert found["samples_per_second"] == 1.0 and found["tokens_per_second"] == 100.0
    assert found["tokens_per_sample"] == 100.0 and found["soft_tokens_per_segment"] == 3.0
    assert found["padding"] == 0.2
    assert found["data_wait"] == 0.25 and found["loss_caption"] == 2.0
    assert found["mfu"] == 200 / (8 * 50)
    assert found["peak_bytes"] > 10_000_000
    clock[0] += 2.0
    again = meter.figures(total_flops=1200.0)
    assert again["data_wait"] == 0.0 and "mfu" not in again and "loss_caption" not in again


def test_a_module_that_tells_nothing_has_figures_of_time_and_memory():
    meter = Meter(nn.Linear(1, 1), peak=1.0)
    assert meter.figures(0.0) == {}, "before the first batch"
    with meter.waiting(0.0):
        time.sleep(0.01)
    meter.add()
    assert set(meter.figures(0.0)) == {"data_wait", "peak_bytes"}


def test_the_peak_is_the_setting_or_measured():
    assert _peak_flops(torch.device("cpu"), "float32", 7.0) == (7.0, "the setting peak_flops")
    found, where = _peak_flops(torch.device("cpu"), "float32")
    assert found is not None and found > 1e8 and "measured" in where


@pytest.mark.parametrize(
    ("name", "precision", "expected"),
    [
        ("NVIDIA H200", "bfloat16", 989e12),
        ("NVIDIA H100 PCIe", "bfloat16", 756e12),
        ("NVIDIA A100-SXM4", "float32", 19.5e12),
    ],
)
def test_known_cards_have_their_makers_figure(monkeypatch, name: str, precision: str, expected: float):
    class Module:
        @staticmethod
        def get_device_name(device: object) -> str:
            return name

    monkeypatch.setattr(meters.torch, "get_device_module", lambda kind: Module)
    assert _peak_flops(torch.device("cuda"), precision)[0] == expected
    name = "Something new"
    found, where = _peak_flops(torch.device("cuda"), precision)
    assert found is None and "set peak_flops" in where
