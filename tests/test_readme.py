"""What the README tells people to type exists, and its Python snippets run."""

import json
import re
from pathlib import Path

import pytest
from pydantic import BaseModel

import langdc.sample
from langdc.config import MethodConfig, RunConfig, load
from langdc.evaluate.settings import EvalConfig

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
PAGES = [README, ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
FOLDERS = ("langdc", "train", "eval", "data_prep", "scripts", "configs", "docs", "examples", "tests", "constraints")


def blocks(page: Path, language: str) -> list[str]:
    """The fenced code of a page in one language."""
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), flags=re.MULTILINE | re.DOTALL)


def commands(page: Path) -> list[str]:
    """The command lines of a page's shell blocks, continued lines joined, without prompts and comments."""
    text = "\n".join(block for name in ("sh", "bash", "console", "shell") for block in blocks(page, name))
    lines = (line.removeprefix("$ ").partition(" #")[0].strip() for line in text.replace("\\\n", " ").splitlines())
    return [line for line in lines if line and not line.startswith("#")]


@pytest.fixture
def workplace(tmp_path: Path, sample_video: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a clip.mp4 and, where a training run leaves it, the model that ships."""
    (tmp_path / "clip.mp4").symlink_to(sample_video)
    stage3 = tmp_path / "runs/sample/langdc/stage3"
    stage3.parent.mkdir(parents=True)
    stage3.symlink_to(langdc.sample.weights("langdc"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_python_snippets_run_in_order(workplace: Path):
    snippets = blocks(README, "python")
    assert snippets, "the README shows how to use the library"
    names: dict[str, object] = {"__name__": "readme"}
    for snippet in snippets:
        exec(compile(snippet, "README.md", "exec"), names)


def test_make_targets_exist():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    named = {target for page in PAGES for target in re.findall(r"(?<=make )[a-z][a-z-]+(?=[`\n ]|$)", code_of(page))}
    assert {"quickstart", "test"} <= named
    assert named <= targets, f"no such make target: {sorted(named - targets)}"


def code_of(page: Path) -> str:
    """Everything of a page that is set as code: one line per piece."""
    text = page.read_text()
    fenced = re.findall(r"^```.*?\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    return "\n".join([*fenced, *re.findall(r"`([^`\n]+)`", text)])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_named_in_code_exist(page: Path):
    named = set(re.findall(rf"(?<![\w/.])(?:{'|'.join(FOLDERS)})/[\w./-]*\w/?", code_of(page)))
    configs = {name for name in named if (ROOT / "configs" / f"{name}.yaml").is_file()}  # by the names they ship with
    assert not [name for name in sorted(named - configs) if not (ROOT / name).exists()]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_between_pages_lead_somewhere(page: Path):
    links = re.findall(r"\]\((?!https?://|mailto:|#)([^)#]+)", page.read_text())
    assert not [link for link in links if not (page.parent / link).exists()]


def test_overrides_in_commands_are_accepted():
    """A command with --config FILE dotted.key=value is loaded as the application would."""
    for command in commands(README):
        given = re.search(r"--config[ =](\S+\.yaml)", command)
        if given is None:
            continue
        overrides = re.findall(r"(?<=\s)[a-z_][\w.]*=\S+", command[given.end() :])
        load(kind_of(command.partition("--config")[0]), ROOT / given[1], overrides)


def test_the_notebook_has_no_outputs():
    cells = json.loads((ROOT / "examples/first_steps.ipynb").read_text())["cells"]
    assert cells and not any(cell.get("outputs") or cell.get("execution_count") for cell in cells)


def kind_of(application: str) -> type[BaseModel]:
    """What the config file of a command is read as."""
    if "langdc ask" in application:
        return MethodConfig
    return EvalConfig if "eval/" in application else RunConfig
