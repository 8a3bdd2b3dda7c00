"""A small run that tests may break, started as its command is."""

import json
import shutil
from pathlib import Path

import yaml

from langdc import cli
from langdc.evaluate.folder import EvalFolder
from tests.evaluate import runs

ROOT = Path(__file__).parent.parent.parent
DONE, FAILED, MISTAKE, MACHINE = 0, 1, 2, 3
"""Exit codes of the command."""


class Place:
    """A run of two rows on three videos of its own, that a test may break."""

    def __init__(self, folder: Path, prepared: Path) -> None:
        shutil.copytree(prepared / "data", folder / "data")
        self.records, self.output = folder / "data" / "test.jsonl", folder / "eval"
        task = {"name": "sample", "data": str(self.records)}
        config = runs.config(prepared, output=str(self.output), task=task)
        self.config = config.model_copy(update={"entries": [config.entries[0], config.entries[3]], "reference": None})
        self.file = folder / "eval.yaml"
        self.file.write_text(yaml.safe_dump(json.loads(self.config.model_dump_json())))

    def video(self, name: str) -> Path:
        return self.records.parent / "videos" / f"{name}.mp4"

    def run(self, *options: str) -> int:
        """The exit code of the command."""
        return cli.main(["eval", "--config", str(self.file), *options])

    def lines(self, output: Path | None = None) -> dict[str, list[dict]]:
        """All lines by row, but those of times, by key; a key occurs once."""
        folder, found = EvalFolder.read(output or self.output), {}
        for name in folder.names():
            of_row = folder.lines(name)
            assert len({line["key"] for line in of_row}) == len(of_row)
            found[name] = sorted((line for line in of_row if line["type"] != "timing"), key=lambda line: line["key"])
        return found

    def answers(self) -> dict[str, list[dict]]:
        return {name: [line for line in of if line["type"] == "answer"] for name, of in self.lines().items()}
