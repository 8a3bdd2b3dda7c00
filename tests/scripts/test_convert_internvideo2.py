"""InternVideo2 as published, one pickled training state, becomes a directory that the video encoder loads whole."""

import json
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from langdc.encoders.video import VideoEncoder
from scripts.convert_internvideo2 import main

PUBLISHED = Path(__file__).parents[1] / "golden/langdc_ckpt/InternVideo2-tiny.pt"
BLOCK = "vision_encoder.blocks.2.mlp.fc1.weight"


def run(*words: object) -> int:
    return main([*map(str, words)])


def published() -> dict[str, Tensor]:
    return torch.load(PUBLISHED, weights_only=True)["module"]


def save(file: Path, change: Callable[[dict[str, Tensor]], object]) -> Path:
    tensors = published()
    change(tensors)
    torch.save({"module": tensors}, file)
    return file


def test_the_encoder_is_loaded_with_every_tensor_and_a_fresh_process_agrees(tmp_path: Path, capsys) -> None:
    assert run(PUBLISHED, tmp_path / "out", "--heads", 4) == 0
    found, expected = VideoEncoder(str(tmp_path / "out")).model.state_dict(), published()
    assert all(torch.equal(found[name], expected[f"vision_encoder.{name}"].float()) for name in found)
    report = json.loads((tmp_path / "out/conversion.json").read_text())
    assert len(report["taken"]) == len(found)
    assert sorted([*report["taken"].values(), *report["dropped"]]) == sorted(expected)
    sizes = json.loads((tmp_path / "out/config.json").read_text())
    assert (sizes["depth"], sizes["mlp_width"], sizes["frames"], sizes["image_size"]) == (4, 209, 4, 32)
    assert "loaded again, the same 57 tensors" in capsys.readouterr().out


def test_model_in_place_of_module_and_the_text_half_are_known(tmp_path: Path) -> None:
    more = {"text_encoder.bert.x": torch.ones(2), "temp": torch.ones(1), "itm_head.weight": torch.ones(2, 2)}
    torch.save({"model": {**published(), **more}}, tmp_path / "x.pt")
    assert run(tmp_path / "x.pt", tmp_path / "out", "--heads", 4, "--no-verify-save") == 0


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: t.pop(BLOCK), f"1 missing: {BLOCK.removeprefix('vision_encoder.')}"),
        (lambda t: t.pop("vision_encoder.img_pos_embed"), "missing: vision_encoder.img_pos_embed"),
        (lambda t: t.update(surprise=torch.ones(1)), "1 unknown: surprise"),
        (lambda t: t.update({"vision_encoder.blocks.2.surprise": torch.ones(1)}), "1 unknown: blocks.2.surprise"),
        (lambda t: t.update({BLOCK: torch.ones(3, 48)}), "(3, 48), not (209, 48)"),
    ],
)
def test_what_is_missing_unknown_or_misshapen_is_named(tmp_path: Path, capsys, change, said: str) -> None:
    assert run(save(tmp_path / "x.pt", change), tmp_path / "out", "--heads", 4) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


class Code:
    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self):
        return Path.touch, (self.file,)


def test_code_in_a_pickle_is_refused_and_does_not_run(tmp_path: Path, capsys) -> None:
    for name, write in (("zip.pt", torch.save), ("plain.pt", lambda x, file: file.write_bytes(pickle.dumps(x)))):
        write({"module": {**published(), "x": Code(tmp_path / "ran")}}, tmp_path / name)
        assert run(tmp_path / name, tmp_path / "out", "--heads", 4) == 2
        assert "holds objects whose code would run" in capsys.readouterr().err
    assert not (tmp_path / "ran").exists() and not (tmp_path / "out").exists()


def test_a_file_that_is_cut_off_or_absent_is_told(tmp_path: Path, capsys) -> None:
    whole = PUBLISHED.read_bytes()
    for size in (len(whole) // 2, 10, 0):
        (tmp_path / "x.pt").write_bytes(whole[:size])
        assert run(tmp_path / "x.pt", tmp_path / "out") == 2
        assert "Copy it again" in capsys.readouterr().err
    assert run(tmp_path / "y.pt", tmp_path / "out") == 2
    assert "There is no file of weights" in capsys.readouterr().err


def test_heads_are_asked_for_where_the_width_is_of_no_published_size(tmp_path: Path, capsys) -> None:
    assert run(PUBLISHED, tmp_path / "out") == 2
    assert "--heads N" in capsys.readouterr().err
    assert run(PUBLISHED, tmp_path / "out", "--heads", 7) == 2
    assert "7 heads do not divide" in capsys.readouterr().err


def test_what_is_there_is_not_overwritten(tmp_path: Path, capsys) -> None:
    assert run(PUBLISHED, tmp_path) == 2
    assert "exists already" in capsys.readouterr().err
