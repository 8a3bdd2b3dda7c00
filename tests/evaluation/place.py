"""A small run that tests may break, started as its command is."""

import importlib.util
import json
import shutil
from pathlib import Path

import yaml

from langdc import jsonl
from langdc.evaluation.results import RunFolder
from tests.evaluation import runs

ROOT = Path(__file__).parent.parent.parent
DONE, FAILED, MISTAKE, MACHINE = 0, 1, 2, 3
"""Exit codes of the command."""


def _application():
    spec = importlib.util.spec_from_file_location("eval_run", ROOT / "eval" / "run.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


RUN = _application()


class Place:
    """A run of two rows on three videos of its own, that a test may break."""

    def __init__(self, folder: Path, prepared: Path) -> None:
        shutil.copytree(prepared / "data", folder / "data")
        self.records, self.output = folder / "data" / "test.jsonl", folder / "eval"
        task = {"name": "sample", "data": str(self.records)}
        config = runs.config(prepared, output=str(self.output), task=task)
        self.config = config.model_copy(update={"rows": [config.rows[0], config.rows[3]], "reference": None})
        self.file = folder / "eval.yaml"
        self.file.write_text(yaml.safe_dump(json.loads(self.config.model_dump_json())))

    def video(self, name: str) -> Path:
        return self.records.parent / "videos" / f"{name}.mp4"

    def run(self, *options: str) -> int:
        """The exit code of the command."""
        return RUN.main(["--config", str(self.file), *options])

    def lines(self, output: Path | None = None) -> dict[str, list[dict]]:
        """All lines by row, but those of times, by key; a key occurs once."""
        folder, found = RunFolder.read(output or self.output), {}
        for name in folder.names():
            of_row = jsonl.read(folder.row_path(name))
            assert len({line["key"] for line in of_row}) == len(of_row)
            found[name] = sorted((line for line in of_row if line["type"] != "timing"), key=lambda line: line["key"])
        return found

    def answers(self) -> dict[str, list[dict]]:
        return {name: [line for line in of if line["type"] == "answer"] for name, of in self.lines().items()}
