"""Benchmarks compare like with like: the references do what the methods do, and every page keeps its other sections."""

from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from benchmarks import captions, costs, decode, first_token, reference, report
from benchmarks import compressors as benchmark
from langdc import compressors
from langdc.attention import received_attention

FRAMES, PLACES, WIDTH = 12, 10, 24


@pytest.fixture
def features():
    return benchmark.video(FRAMES, PLACES, WIDTH, "cpu", torch.float32)


def values_of(features) -> torch.Tensor:
    return features.projected[0].values[:, 0]


@pytest.mark.parametrize("keep", [0.2, 0.35])
def test_vidcom2_keeps_what_the_reference_keeps(features, keep: float) -> None:
    ours = compressors.build("vidcom2", keep=keep, variant="released").one(features)
    assert torch.equal(ours.values, reference.vidcom2(values_of(features), keep))


def test_dpselect_keeps_what_the_reference_keeps(features) -> None:
    ours = compressors.build("dpselect", tokens=5 * PLACES, per="patch").one(features)
    expected = reference.dpselect(values_of(features), 5)
    assert len(ours) == 5 * PLACES
    for place in range(PLACES):
        assert torch.equal(ours.values[ours.source % PLACES == place], expected[:, place])


def test_ma_lmm_merges_as_the_reference_does(features) -> None:
    ours = compressors.build("ma_lmm", tokens=4 * PLACES).one(features).values
    expected = reference.ma_lmm(values_of(features), 4).flatten(0, 1)
    apart = torch.cdist(expected, ours, compute_mode="donot_use_mm_for_euclid_dist")
    assert apart.min(1).values.max() < 1e-5 and apart.min(0).values.max() < 1e-5
    assert len(ours) == len(expected)


@pytest.mark.parametrize("queries", [3, 16])
def test_scores_are_those_of_the_reference(queries: int) -> None:
    dice = torch.Generator().manual_seed(0)
    key, query = torch.randn(1, 2, 16, 8, generator=dice), torch.randn(1, 6, 16, 8, generator=dice)[:, :, :queries]
    torch.testing.assert_close(received_attention(query, key).mean(0), reference.attention_scores(query, key))


def test_references_stay_on_the_device_of_what_they_get() -> None:
    """With tensors that say they are on a card and hold nothing: mixing devices is an error."""
    with FakeTensorMode():
        values = torch.empty(FRAMES, PLACES, WIDTH, device="cuda")
        states = torch.empty(1, 6, 16, 8, device="cuda")
        assert reference.ma_lmm(values, 4).device.type == "cuda"
        assert reference.attention_scores(states, states[:, :2]).device.type == "cuda"
        with pytest.raises(RuntimeError, match="device"):
            reference.attention_scores(states, states.cpu())


@pytest.mark.slow
def test_the_table_of_compressors(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(benchmark, "SECONDS", 0.0)
    monkeypatch.setattr(benchmark, "narrow_cases", lambda device, dtype: iter(()))
    monkeypatch.setattr(benchmark, "key_cases", lambda device, dtype: iter(()))
    page = tmp_path / "benchmarks.md"
    page.write_text("# Benchmarks\n\nOurs.\n\n## Another\n\nstays\n")
    for _ in range(2):
        assert benchmark.main(["--frames", "4", "--width", "16", "--out", str(page)]) == 0
    text = page.read_text()
    assert text.startswith("# Benchmarks\n\nOurs.\n\n## Another\n\nstays\n\n## Compressors, cpu, float32\n")
    assert text.count("## Compressors") == 1
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    assert {line.split(" | ")[0].strip("| ") for line in lines[2:]} == {
        "vidcom2", "dpselect, patches", "ma_lmm", *benchmark.OTHERS
    }  # fmt: skip
    assert "--frames 4 --width 16" in text and "4 x 196 x 16" in capsys.readouterr().out


def test_memory_is_the_most_that_lived_at_once() -> None:
    def work() -> None:
        kept = torch.zeros(1000)
        for _ in range(3):
            kept = kept + torch.ones(1000)

    assert benchmark.measure(work, "cpu")[1] == 12_000  # what is kept, ones, and their sum, 4 bytes each


def test_lines_of_the_first_token() -> None:
    model = first_token.Model(
        2, "cpu", torch.float32, vocab_size=64, hidden_size=64, intermediate_size=48, num_attention_heads=4,
        num_key_value_heads=2, rope_parameters={"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]},
    )  # fmt: skip
    lines = list(first_token.rows(model, frames=64, budget=1600))
    assert [line[2].split(",")[0] for line in lines] == ["plain", "flexreduc", *first_token.BEFORE]
    plain, thinned, *before = (dict(zip(first_token.COLUMNS, line, strict=True)) for line in lines)
    assert plain["tokens"] == thinned["tokens"] == str(32 * 144)
    read = 32 * 144 + first_token.SYSTEM + first_token.QUESTION
    assert plain["keys"] == str(read) and plain["faster"] == "1.00x"
    held = [int(number) for number in thinned["keys"].split(" to ")]
    assert 1000 < min(held) <= max(held) < 2500
    assert all(line["share of saving"] != "-" and float(line["compress s"]) >= 0 for line in before)
    shorter = list(first_token.rows(model, frames=4, budget=1600))
    assert [line[2] for line in shorter][1].startswith("vidcom2")  # nothing to drop within the budget


def test_a_section_is_replaced_where_it_stands(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    for title in ("One", "Two", "One"):
        report.write(page, title, "how", ["a", "b"], [["1", title]])
    assert page.read_text() == (
        "# Benchmarks\n\n## One\n\nhow\n\n| a | b |\n| --- | --- |\n| 1 | One |\n"
        "\n## Two\n\nhow\n\n| a | b |\n| --- | --- |\n| 1 | Two |\n"
    )


@pytest.mark.slow
def test_captions_are_as_long_as_asked(capsys) -> None:
    small = ["--model", "sample:langdc", "--videos", "1", "2", "--tokens", "3", "--side", "64", "--calls", "1"]
    assert captions.main(small) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if "langdc" in line and "│" in line]
    assert [[cell.strip() for cell in line.split("│")[1:4]] for line in lines] == [
        [count, "langdc", str(4 * (3 + 1))]
        for count in ("1", "2")  # four segments, each with its marker
    ]


def test_decoders_side_by_side(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(decode, "WRITTEN", {"small": (2, 48, 64, 12)})
    monkeypatch.setattr(decode.decoders, "DECODERS", ("pyav", "decord"))
    monkeypatch.setattr(
        decode.decoders, "decoder_trouble", lambda name: "gone. Install it." if name == "decord" else None
    )
    page, threads = tmp_path / "benchmarks.md", torch.get_num_threads()
    options = ["--frames", "5", "--calls", "1", "--threads", "1", "2", "--size", "24", "32"]
    assert decode.main([*options, "--out", str(page)]) == 0
    lines = [line.strip("| ").split(" | ") for line in page.read_text().splitlines() if line.startswith("| small")]
    assert [line[:3] for line in lines] == [["small", name, n] for n in "12" for name in ("pyav", "decord")]
    assert [line[-1] for line in lines[::2]] == ["0", "0"]  # frames are those of decoding in order
    assert all("not installed: gone" in line[3] for line in lines[1::2])
    assert torch.get_num_threads() == threads


@pytest.mark.slow
def test_costs_are_of_every_training_free_method(monkeypatch) -> None:
    monkeypatch.setattr(costs, "frame_costs", lambda *_: iter(()))  # a whole CLIP
    found = [line[:2] for line in costs.rows(2, "cpu", torch.float32, [])]
    zoos = (costs.compressors, costs.layercompressors, costs.kvcompressors)
    named = [name for zoo in zoos for name, settings in costs.budgeted(zoo) if not settings]
    assert sorted(name for name, _ in found if "," not in name) == sorted(named) and len(named) > 20
    assert ["divprune, frame", "before the LLM"] in found and ["random", "KV cache"] in found


def test_costs_above_the_limit_are_marked_with_their_reason(monkeypatch) -> None:
    """Products of 2 x 128^3 FLOPs: much less than what is saved, half of it, or none of what takes the time."""
    one, flops = torch.ones(128, 128), 2 * 128**3
    made = [
        costs.Cost("cheap", "", "", lambda: one @ one, 1e18),
        costs.Cost("products", "", "", lambda: one @ one, 2 * flops),
        costs.Cost("slow", "", "", lambda: torch.arange(10**5).sort(), 1.0),
        costs.Cost("twice", "", "", lambda: one @ one, 2 * flops, times=2),
        costs.Cost("nothing", "", "", lambda: one @ one, 0.0),
    ]
    monkeypatch.setattr(costs, "token_costs", lambda *_: iter(made))
    for part in ("frame_costs", "layer_costs", "kv_costs"):
        monkeypatch.setattr(costs, part, lambda *_: iter(()))
    found = {line[0]: line[5:] for line in costs.rows(1, "cpu", torch.float32, [])}
    assert found["cheap"] == ["0.00 %", "0.00 %", ""] and found["nothing"] == ["nothing saved", "-", ""]
    assert found["products"][1:] == ["50.00 %", "its products"] and found["twice"][1] == "100.00 %"
    assert found["slow"][1:] == ["0.00 %", "**above 5 %**"]
