"""The command prints what can be worked out by hand from the sizes of the models, and the page has what it prints."""

from pathlib import Path

import pytest

from benchmarks import paper_flops

ROOT = Path(__file__).resolve().parent.parent


def rows(page: Path) -> list[list[str]]:
    """The cells of all tables of a page that a command wrote, their heads aside."""
    made = page.read_text().partition("## The settings of")[2]
    lines = [line.strip("| ").split(" | ") for line in made.splitlines() if line.startswith("| ")]
    return [cells for cells in lines if cells[0] not in ("setting", "way", "---")]


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("page") / "flops.md"
    paper_flops.main(["--out", str(found)])
    return found


def block(tokens: int, weights: int, width: int, keys: int) -> float:
    """A transformer's block: every weight once per token; scores and mixing for each of `keys`."""
    return 2 * tokens * weights + 2 * 2 * tokens * keys * width


def encoders() -> float:
    """CLIP's first 23 blocks on 16 frames of 24x24 patches and a class token, InternVideo2's first 39 on 4 clips."""
    clip = 2 * 576 * 3 * 14 * 14 * 1024 + 23 * block(577, 4 * 1024**2 + 2 * 1024 * 4096, 1024, 577)
    video = 2 * 1024 * 3 * 14 * 14 * 1408 + 39 * block(1025, 4 * 1408**2 + 2 * 1408 * 6144, 1408, 1025)
    return 16 * clip + 4 * video


def projectors(width: int) -> float:
    """Two linear layers over 16 frames of 576 patches of 1024, and 256 of 1408 numbers."""
    return 2 * 16 * (576 * (1024 + width) * width + 256 * (1408 + width) * width)


def qwen(tokens: int, keys: int, layers: int, width: int, mlp: int, of_keys: int) -> float:
    return layers * block(tokens, 2 * width**2 + 2 * width * of_keys + 3 * width * mlp, width, keys)


def test_videogpt_plus_by_hand(page: Path) -> None:
    phi = {"layers": 32, "width": 3072, "mlp": 8192, "of_keys": 3072}
    head = 2 * 3072 * 32064
    prompt = 16 * (144 + 64) + 90
    reading = qwen(prompt, prompt, **phi) + head
    writing = sum(qwen(1, prompt + done + 1, **phi) + head for done in range(7))
    parts = [encoders(), projectors(3072), reading, writing]
    cells = ["VideoGPT+", "Phi-3-mini", str(prompt - 90), *(f"{part / 1e12:.2f}" for part in parts)]
    ours = sum(parts) / 1e12
    expected = [*cells, f"{ours:.2f}", "49.85", f"{100 * (ours / 49.85 - 1):+.1f} %"]
    assert rows(page)[0] == expected


def test_langdc_by_hand(page: Path) -> None:
    """Four captions of 59 tokens, written to the 64th: 832 + 47 tokens are read, and 63 more one by one."""
    small = {"layers": 24, "width": 896, "mlp": 4864, "of_keys": 128}
    head, start = 2 * 896 * 151936, 4 * (144 + 64) + 47
    caption = qwen(start, start, **small) + head
    caption += sum(qwen(1, start + done + 1, **small) + head for done in range(63))
    compress = projectors(2048) + projectors(896) + 4 * caption + 2 * 236 * 896 * 2048
    prompt = 16 * (36 + 16) + 236 + 90
    reading = qwen(prompt, prompt, 36, 2048, 11008, 256) + 2 * 2048 * 151936
    found = rows(page)[1]
    assert found[:3] == ["LangDC", "Qwen2.5-3B", "1068"] and found[8] == "25.15"
    assert found[3:6] == [f"{part / 1e12:.2f}" for part in (encoders(), compress, reading)]


def test_the_page_has_what_the_command_prints(page: Path) -> None:
    found = rows(page)
    assert [row[2] for row in found[:7]] == ["3328", "1068", "236", "208", "444", "832", "1068"]
    assert found == rows(ROOT / "docs/flops.md")


def test_ways_change_what_they_say(page: Path) -> None:
    ways = {row[0]: [float(cell.split()[0]) for cell in row[1:]] for row in rows(page)[7:]}
    ours = ways["ours"]
    assert ways["a multiply-add as one"] == pytest.approx([whole / 2 for whole in ours], abs=0.01)
    without = [whole - encoders() / 1e12 for whole in ours]
    assert ways["encoders left out"] == pytest.approx(without, abs=0.02)
    twice = ways["video encoder twice where there are captions"]
    dearer = [row for row, (more, once) in enumerate(zip(twice, ours, strict=True)) if more > once]
    assert dearer == [1, 2, 4, 6]


def test_no_tokens_are_refused(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        paper_flops.main(["--reply", "0"])
    assert "must be at least 1" in capsys.readouterr().err
