"""Several processes, and kills at any moment: the lines that are left are those of one undisturbed process."""

import json
import os
import random
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
import yaml

from langdc import jsonl
from langdc.evaluate.folder import EvalFolder
from tests.evaluate import runs
from tests.evaluate.place import DONE, Place

ROOT = Path(__file__).parent.parent.parent
TIMED = ("seconds", "peak_bytes")
KILLS = 20


def settings(folder: Path, prepared: Path, data: Path, output: str) -> Path:
    """A config file whose rows are those of the other tests."""
    config = runs.config(
        prepared,
        batch_size=1,
        max_new_tokens=12,
        task={"name": "sample", "data": str(data)},
        output=str(folder / output),
    )
    file = folder / f"{output}.yaml"
    file.write_text(yaml.safe_dump(json.loads(config.model_dump_json())))
    return file


def start(config: Path, processes: int, **options) -> subprocess.Popen:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    command = [*(launcher if processes > 1 else [sys.executable]), "eval/run.py", "--config", str(config)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


def run(config: Path, processes: int) -> str:
    process = start(config, processes)
    said, _ = process.communicate(timeout=600)
    assert process.returncode == 0, said.decode()
    return said.decode()


def written(output: Path) -> int:
    """How many bytes there are, in files of rows and in parts of them."""
    count = 0
    for path in output.glob("results/*/*.jsonl"):
        with suppress(FileNotFoundError):  # parts go when they are put together
            count += path.stat().st_size
    return count


def kill(process: subprocess.Popen) -> bool:
    """Kill all processes of a run at once; whether it was still going. If not, it must have come to its end."""
    going = process.poll() is None
    family = [*psutil.Process(process.pid).children(recursive=True), process] if going else []
    for one in family:
        with suppress(psutil.NoSuchProcess):
            one.kill()
    said = process.communicate(timeout=60)[0].decode()
    assert going or process.returncode == 0, said
    psutil.wait_procs([one for one in family if isinstance(one, psutil.Process)], timeout=60)
    return going


def lines(output: Path) -> dict[str, list[dict]]:
    """All lines of all rows without times, sorted by key."""
    folder = EvalFolder.read(output)
    found = {}
    for name in folder.names():
        of_row = folder.lines(name)
        assert len({line["key"] for line in of_row}) == len(of_row)
        kept = [{k: v for k, v in line.items() if k not in TIMED} for line in of_row if line["type"] != "timing"]
        found[name] = sorted(kept, key=lambda line: line["key"])
    return found


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A record file of more videos."""
    return runs.write_data(tmp_path_factory.mktemp("many"), videos=36, seed=8)


def test_the_argument_of_the_deepspeed_launcher_is_understood(place: Place) -> None:
    assert place.run("--local_rank=0") == DONE


@pytest.mark.slow
def test_two_processes_and_twenty_kills(prepared: Path, many: Path, tmp_path: Path) -> None:
    alone = settings(tmp_path, prepared, many, "alone")
    run(alone, 1)
    config = settings(tmp_path, prepared, many, "killed")
    output, dice, killed = tmp_path / "killed", random.Random(0), 0
    for _ in range(KILLS):
        before, wanted = written(output), dice.randrange(0, 8000)
        process = start(config, 2)
        while process.poll() is None and written(output) < before + wanted:
            time.sleep(0.002)
        time.sleep(dice.random() * 0.02)
        killed += kill(process)
    assert killed >= KILLS - 2, "there was not enough to do for as many kills"
    run(config, 2)
    assert lines(output) == lines(tmp_path / "alone")
    opened = [line["key"] for path in output.glob("encoding/*.jsonl") for line in jsonl.read(path)]
    assert len(opened) >= 36
    assert run(config, 2).count("answers right") == 0  # nothing is left to do
