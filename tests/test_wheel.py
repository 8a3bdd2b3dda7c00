"""The built wheel does everything in an empty folder, without the repository."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import venv
from collections.abc import Mapping
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parent.parent
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
SETTINGS = PYPROJECT["tool"]["setuptools"]
SHORT = ("train.steps=2", "save_steps=2", "log_steps=1")


def test_configs_ship_without_a_copy():
    assert SETTINGS["package-dir"] == {"langdc.configs": "configs"}
    assert not (ROOT / "langdc/configs").exists()


def test_every_template_and_weight_ships():
    shipped: set[Path] = set()
    for package, patterns in SETTINGS["package-data"].items():
        folder = ROOT / package.replace(".", "/")
        shipped |= {file for pattern in patterns for file in folder.glob(pattern)}
    files = {file for file in (ROOT / "langdc").rglob("*") if file.is_file() and "__pycache__" not in file.parts}
    assert {file for file in files if file.suffix != ".py"} == shipped


def test_lower_bounds_are_what_the_oldest_versions_pin():
    lines = [one for one in (ROOT / "constraints/oldest.txt").read_text().splitlines() if "==" in one]
    pinned = {each.name: str(each.specifier) for each in map(Requirement, lines)}
    stated = map(Requirement, PYPROJECT["project"]["dependencies"])
    bounds = {each.name: [one for one in each.specifier if one.operator == ">="] for each in stated}
    for name, (bound,) in bounds.items():
        assert pinned[name].startswith(f"=={bound.version}"), f"{name}{bound} and {pinned[name]}"


def run(*command: object, cwd: Path, **more: str) -> str:
    """What a command prints; it must succeed."""
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    done = subprocess.run([*map(str, command)], cwd=cwd, env={**kept, **more}, capture_output=True, text=True)
    assert done.returncode == 0, f"{command}: {done.returncode}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


def build(place: Path) -> Path:
    """A wheel of the files that git knows: nothing that lies about in the working tree may help."""
    source = place / "source"
    listed = run("git", "ls-files", "--cached", "--others", "--exclude-standard", cwd=ROOT).splitlines()
    for name in listed:
        if name.startswith(("langdc/", "configs/")) or name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            if (ROOT / name).is_file():
                shutil.copy(ROOT / name, source / name)
    words = ("wheel", "--no-deps", "--no-build-isolation", "--no-index", "-q", "-w", place)
    run(sys.executable, "-m", "pip", *words, source, cwd=place)
    shutil.rmtree(source)
    return next(place.glob("*.whl"))


@pytest.fixture(scope="module")
def bin_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The scripts of a fresh environment with the wheel in it; other packages are those of the tests' environment."""
    place = tmp_path_factory.mktemp("wheel")
    wheel, environment = build(place), place / "env"
    venv.create(environment, with_pip=False)
    python = environment / "bin/python"
    site = run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=place).strip()
    below = sysconfig.get_path("purelib")
    (Path(site) / "below.pth").write_text(f"import site; site.addsitedir({below!r})\n")
    words = ("--python", python, "install", "--no-deps", "--no-index", "--force-reinstall", "-q", wheel)
    run(sys.executable, "-m", "pip", *words, cwd=place)
    found = run(python, "-c", "import langdc; print(langdc.__file__)", cwd=place).strip()
    assert Path(found).is_relative_to(environment), "not the repository's"
    return environment / "bin"


@pytest.fixture
def langdc(bin_folder: Path, tmp_path: Path):
    """Runs the installed command in an empty folder."""
    threads: Mapping[str, str] = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hf")}
    return lambda *words: run(bin_folder / "langdc", *words, cwd=tmp_path, **threads)


@pytest.mark.slow
def test_the_sample_is_made_trained_evaluated_and_exported(langdc, tmp_path: Path):
    assert "data sample" in langdc("--help")
    langdc("data", "sample", "--out", "data/sample", "--small")
    langdc("train", "sample/pool", *SHORT)
    run_folder = tmp_path / "runs/sample/pool"
    assert (run_folder / "langdc.json").is_file()
    model = {"name": "pool", "model": str(run_folder)}
    few = ("sweep=null", "reference=null", "limit=2", "timing_videos=1", "warmup_videos=0")
    langdc("eval", "sample/eval", f"entries={json.dumps([model])}", "output=runs/eval", *few)
    langdc("report", "runs/eval")
    assert (tmp_path / "runs/eval/report.html").is_file()
    langdc("export", run_folder, "exported")
    video = next((tmp_path / "data/sample").rglob("*.mp4"))
    assert "video tokens" in langdc("ask", video, "what shape is the red object ?", "--model", "exported")


@pytest.mark.slow
def test_configs_are_found_by_name_and_described(langdc, tmp_path: Path):
    tree = json.loads(langdc("config-schema"))
    assert "output" in json.dumps(tree)
    assert "task" in json.dumps(json.loads(langdc("config-schema", "--eval")))
    assert "vidcom2" in langdc("compressors")
    assert "a sample video" in langdc("ask", "--sample").lower()
    assert list(tmp_path.iterdir()) == [], "nothing is left behind"
