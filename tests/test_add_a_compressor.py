"""docs/add_a_compressor.md does what it says: its code runs, and its compressor passes the conformance tests."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "add_a_compressor.md").read_text()


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    made = tmp_path_factory.mktemp("third_party")
    first, second, third = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    (made / "my_compressor.py").write_text(first)
    (made / "try_it.py").write_text(second)
    (made / "my_layers.py").write_text(third)
    package = made / "my_layers-1.0.dist-info"  # as installed, with its entry point
    package.mkdir()
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: my_layers\nVersion: 1.0\n")
    section = re.search(r'entry-points\.("langdc\.layercompressors")\]\n(.*?)```', PAGE, re.DOTALL)
    assert section is not None
    lines = section[2].replace('"', "")
    (package / "entry_points.txt").write_text(f"[langdc.layercompressors]\n{lines}")
    return made


def run(folder: Path, *command: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)])}
    return subprocess.run(
        [sys.executable, *command], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )


def test_it_is_short(folder: Path) -> None:
    assert len((folder / "my_compressor.py").read_text().splitlines()) < 60


def test_a_layer_compressor_is_short_and_found_by_its_entry_point(folder: Path) -> None:
    assert len((folder / "my_layers.py").read_text().splitlines()) < 40
    code = "from langdc.layercompressors import layercompressors as zoo; print(zoo.build('longest', keep=0.5).paper)"
    done = run(folder, "-c", code)
    assert done.stdout == "yours\n", done.stderr


@pytest.mark.slow
def test_it_runs_without_a_model(folder: Path) -> None:
    done = run(folder, "try_it.py")
    assert done.stdout.startswith("torch.Size([784, 256])"), done.stderr


COMMANDS = re.findall(r"^\$ pytest (--pyargs .*)$", PAGE, re.MULTILINE)


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_it_passes_the_conformance_tests(folder: Path, command: str) -> None:
    words = [word.strip("'") for word in re.findall(r"'[^']*'|\S+", command)]
    done = run(folder, "-m", "pytest", "-q", *words)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    assert re.search(r"[2-9]\d passed", done.stdout), done.stdout[-500:]


@pytest.mark.slow
def test_a_compressor_that_breaks_a_promise_fails(folder: Path) -> None:
    text = (folder / "my_compressor.py").read_text()
    broken = text.replace("return (1 - likeness) ** self.power", "return torch.rand(values.shape[:2])")
    (folder / "broken.py").write_text(broken.replace('"standout"', '"broken"'))
    command = ("-m", "pytest", "-q", "--pyargs", "langdc.conformance", "--compressor", "broken:Standout")
    done = run(folder, *command)
    assert done.returncode == 1 and "test_the_same_again" in done.stdout
