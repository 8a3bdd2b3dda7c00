"""The settings of published methods that ship: each file loads, builds on its backbone, and answers when asked."""

import re
from pathlib import Path

import pytest

from langdc import VideoLM, cli
from langdc.backbones.llava_video import LlavaVideo
from langdc.backbones.stock import StockBackbone
from langdc.compressors.dpselect import DPSelect
from langdc.compressors.vidcom2 import VidCom2
from langdc.config import MethodConfig, check, load
from langdc.kvcompressors.flexreduc import FlexReduc
from langdc.kvcompressors.pivotkv import PivotKV
from tests import stock

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
BENCHMARKS = ("videomme", "mlvu", "longvideobench", "lvbench")
FILES = {
    *(f"retake/{task}_{backbone}.yaml" for task in BENCHMARKS for backbone in ("qwen2_vl", "llava_video")),
    *(f"flexreduc/{task}_qwen2_5_vl.yaml" for task in BENCHMARKS),
    *(f"vidcom2/keep{keep}_{backbone}.yaml" for keep in (15, 25) for backbone in stock.NAMES[:5]),
}
RETAKE_4_FPS = ("videomme_qwen2_vl", "mlvu_qwen2_vl")
PLAIN = "backbone: {name: qwen2_5_vl, frames: 8}\ncompressor: {name: vidcom2, keep: 0.25}\n"


def built(file: str) -> tuple[VideoLM, StockBackbone]:
    method = load(MethodConfig, CONFIGS / file)
    lm = VideoLM.from_pretrained(stock.folder(method.backbone.name), **method.arguments)
    assert isinstance(lm.model.backbone, StockBackbone)
    return lm, lm.model.backbone


def scaling(backbone: StockBackbone) -> float:
    """What YaRN multiplies rotated queries and keys with: 0.1 ln(factor) + 1."""
    return float(backbone.text_model.rotary_emb.attention_scaling)  # pyright: ignore[reportArgumentType]


def test_all_files_of_the_three_methods_are_there() -> None:
    found = {
        str(path.relative_to(CONFIGS))
        for name in ("retake", "flexreduc", "vidcom2")
        for path in CONFIGS.glob(f"{name}/*")
    }
    assert found == FILES


@pytest.mark.parametrize("file", sorted(name for name in FILES if name.startswith("retake")))
def test_retake_is_built_with_the_released_figures(file: str) -> None:
    lm, backbone = built(file)
    llava = "llava_video" in file
    assert (backbone.frames, backbone.fps) == (1024 if llava else 2048, 4 if Path(file).stem in RETAKE_4_FPS else 2)
    assert scaling(backbone) == pytest.approx(1.1386, abs=1e-4)
    assert isinstance(lm.kv, PivotKV)
    assert (lm.kv.tokens, lm.kv.chunk_frames, lm.kv.compact_positions) == (40000 if llava else 32000, 32, True)
    if file.endswith("videomme_qwen2_vl.yaml"):
        assert type(lm.compressor).__name__ == "Identity"
    else:
        assert isinstance(lm.compressor, DPSelect)
        assert (lm.compressor.allowed.keep, lm.compressor.per, lm.compressor.window) == (1.0, "patch", 3)
    if isinstance(backbone, LlavaVideo):
        assert (backbone.grid, backbone.side) == ("onevision", 2)


@pytest.mark.parametrize("task", BENCHMARKS)
def test_flexreduc_is_built_with_the_released_figures(task: str) -> None:
    lm, backbone = built(f"flexreduc/{task}_qwen2_5_vl.yaml")
    assert (backbone.frames, backbone.fps) == (2048, 4 if task == "videomme" else 2)
    assert scaling(backbone) == pytest.approx(1.1386, abs=1e-4)
    assert isinstance(lm.kv, FlexReduc)
    assert (lm.kv.tokens, lm.kv.chunk_frames, lm.kv.temporal) == (16000, 32, True)
    assert lm.kv.compact_positions == (task in ("videomme", "lvbench"))
    assert (lm.kv.scorer.question_window == 152) == (task == "longvideobench") and lm.kv.scorer.question_window >= 152
    assert type(lm.compressor).__name__ == "Identity"


@pytest.mark.parametrize("file", sorted(name for name in FILES if name.startswith("vidcom2")))
def test_vidcom2_is_built_with_the_published_share(file: str) -> None:
    lm, backbone = built(file)
    assert (backbone.frames, backbone.fps) == ((64, 1) if "llava_video" in file else (32, None))
    assert scaling(backbone) == 1.0
    assert isinstance(lm.compressor, VidCom2) and lm.kv is None
    assert lm.compressor.allowed.keep == (0.25 if "keep25" in file else 0.15)
    if isinstance(backbone, LlavaVideo):
        assert (backbone.grid, backbone.newlines) == ("authors", "all")


@pytest.mark.parametrize("file", sorted(FILES))
def test_a_file_says_what_was_published_and_what_is_ours(file: str) -> None:
    text = (CONFIGS / file).read_text()
    assert "Published (" in text or "No scores are published" in text
    assert "ours" in text.lower()


def ask(video: Path, folder: str, *words: object) -> int:
    return cli.main(["ask", str(video), "how many ?", "--model", folder, "--max-new-tokens", "2", *map(str, words)])


@pytest.mark.parametrize("file", sorted(name for name in FILES if "mlvu" in name or "keep25" in name))
def test_a_file_is_all_that_asking_needs(file: str, sample_video: Path, capsys) -> None:
    name = load(MethodConfig, CONFIGS / file).backbone.name
    assert ask(sample_video, stock.folder(name), "--config", CONFIGS / file) == 0
    assert " video tokens " in capsys.readouterr().out


def test_a_file_and_the_same_options_do_the_same(sample_video: Path, tmp_path: Path, capsys) -> None:
    (tmp_path / "method.yaml").write_text(PLAIN)
    words = ("--compressor", "vidcom2", "--keep", 0.25, "--frames", 8)
    said = []
    for options in (("--config", tmp_path / "method.yaml"), words):
        assert ask(sample_video, stock.folder("qwen2_5_vl"), *options) == 0
        said.append(capsys.readouterr().out.partition("   decode")[0])
    assert said[0] == said[1]
    kept, before = re.search(r"(\d+) of (\d+) video tokens", said[0]).groups()  # pyright: ignore[reportOptionalMemberAccess]
    assert int(kept) == int(before) // 4


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--compressor", "random", "--keep", 0.5), "leave out --compressor, --keep."),
        (("--kv", "snapkv"), "leave out --kv."),
        (("--backbone", "qwen2_5_vl", "--frames", 8), "leave out --backbone, --frames."),
        (("--tokens", 8), "leave out --tokens."),
        (("--sample",), "leave out --sample."),
    ],
)
def test_a_file_goes_with_no_other_choice(words: tuple, said: str, sample_video: Path, tmp_path: Path, capsys) -> None:
    (tmp_path / "method.yaml").write_text(PLAIN)
    assert ask(sample_video, stock.folder("qwen2_5_vl"), "--config", tmp_path / "method.yaml", *words) == 2
    assert said in capsys.readouterr().err


def test_mistakes_in_a_file_are_told(sample_video: Path, tmp_path: Path, capsys) -> None:
    file = tmp_path / "method.yaml"
    for text, said in (
        (PLAIN.replace("compressor", "compresor"), "compresor: unknown key. Did you mean 'compressor'?"),
        (PLAIN.replace("keep", "kept"), "has no setting 'kept'. Did you mean 'keep'?"),
        (
            PLAIN.replace("qwen2_5_vl", "qwen3_vl"),
            "A 'qwen2_5_vl' checkpoint was given; this backbone is for qwen3_vl.",
        ),
        ("compressor: {name: vidcom2, keep: 0.25}", "backbone: Field required"),
    ):
        file.write_text(text)
        assert ask(sample_video, stock.folder("qwen2_5_vl"), "--config", file) == 2
        assert said in capsys.readouterr().err
    assert ask(sample_video, stock.folder("qwen2_5_vl"), "--config", tmp_path / "none.yaml") == 2
    assert "There is no file" in capsys.readouterr().err


def test_a_method_names_no_weights() -> None:
    with pytest.raises(ValueError, match="names no source; give the weights where it is used"):
        check(MethodConfig, {"backbone": {"name": "qwen2_vl", "source": "somewhere"}}, "method.yaml")
