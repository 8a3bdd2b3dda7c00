"""`scripts/torture.py`: what loses, doubles, refuses, crashes or trusts a name is found, and what resumes is not."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from scripts import torture

WRITER = """
import json, os, sys, time
from pathlib import Path

way, file = sys.argv[1], Path(sys.argv[2], "lines.jsonl")
done = file.read_bytes().count(b"\\n") if file.exists() else 0
if file.exists():  # a line that was cut short
    os.truncate(file, file.read_bytes().rfind(b"\\n") + 1)
if way == "refuses" and done:
    sys.stderr.write("error: it was begun before\\n")
    sys.exit(2)
if way == "crashes" and done:
    raise KeyError("what was begun")
try:
    for number in range(0 if way == "doubles" else done + 1 if way == "loses" and done else done, 60):
        with file.open("a") as lines:
            lines.write(json.dumps({"key": number, "seconds": time.time(), "text": "x" * 300}) + "\\n")
            lines.flush()
            os.fsync(lines.fileno())
        time.sleep(0.03)
        if way == "trusts_names" and not (whole := file.with_name(f"{number // 20}.bin")).exists():
            file.with_name("partial").write_bytes(b"whole" * 1000)
            file.with_name("partial").rename(whole)
            time.sleep(0.5)
except OSError as error:
    sys.stderr.write(f"{'' if way == 'mumbles' else 'error: '}{file}: {error.strerror}\\n")
    sys.exit(2 if way == "miscounts" else 3)
"""
DRIVER = """
import json, sys
from pathlib import Path
from scripts import torture

torture.in_own_mounts()
place, fault, name = Path(sys.argv[1]), *sys.argv[2:]
torture.JOBS = {name: torture.Job(f"{place}/writer.py {name} {{work}}", ("*.jsonl", "*.bin"))}
torture.LIMIT = 60.0
at_work = torture.Torture(place)
print(json.dumps(next(x for x in (at_work.attempt(fault, name, n) for n in range(20)) if x["outcome"] != "missed")))
"""


def disturbed(place: Path, fault: str, way: str) -> dict[str, Any]:
    """What is said of a writer that was disturbed once."""
    (place / "writer.py").write_text(WRITER)
    (place / "driver.py").write_text(DRIVER)
    command = [sys.executable, str(place / "driver.py"), str(place), fault, way]
    environment = {"PYTHONPATH": str(torture.ROOT), "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=200)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    if found["outcome"] == "skipped":
        pytest.skip(found["reason"])
    return found


@pytest.mark.parametrize(
    ("fault", "way", "outcome"),
    [
        ("kills", "resumes", "equal"),
        pytest.param("kills", "loses", "wrong", marks=pytest.mark.slow),
        pytest.param("kills", "doubles", "wrong", marks=pytest.mark.slow),
        pytest.param("kills", "refuses", "refused", marks=pytest.mark.slow),
        pytest.param("kills", "crashes", "wrong", marks=pytest.mark.slow),
        pytest.param("clock", "resumes", "equal", marks=pytest.mark.slow),
        pytest.param("other-disk", "resumes", "equal", marks=pytest.mark.slow),
        pytest.param("read-only", "resumes", "equal", marks=pytest.mark.slow),
        pytest.param("full-disks", "resumes", "equal", marks=pytest.mark.slow),
        pytest.param("full-disks", "mumbles", "wrong", marks=pytest.mark.slow),
        pytest.param("full-disks", "miscounts", "wrong", marks=pytest.mark.slow),
        pytest.param("power-cuts", "resumes", "equal", marks=pytest.mark.slow),
        pytest.param("power-cuts", "trusts_names", "wrong", marks=pytest.mark.slow),
    ],
)
def test_what_does_not_resume_is_found(tmp_path: Path, fault: str, way: str, outcome: str) -> None:
    found = disturbed(tmp_path, fault, way)
    assert found["outcome"] == outcome, found
    assert found["struck"]


def test_counts_are_by_fault_and_by_job() -> None:
    one = {"fault": "kills", "job": "a", "struck": True, "code": 0, "outcome": "equal", "reason": "", "log": "l"}
    lines = torture.page([one, {**one, "job": "b", "code": 2, "outcome": "refused", "reason": "r"}]).splitlines()
    assert lines[2:5] == ["| kills | all | 2 | 2 | 1 | 1 | 1 | 0 |", "| kills | a | 1 | 1 | 1 | 1 | 0 | 0 |",
                          "| kills | b | 1 | 1 | 0 | 0 | 1 | 0 |"]  # fmt: skip
    assert lines[-1] == "* kills, b: refused: r (l)"


def test_jobs_and_faults_are_chosen_by_name(capsys, tmp_path: Path) -> None:
    with pytest.raises(SystemExit):
        torture.main(["--only", "kills,stage9", "--out", str(tmp_path)])
    assert "--only stage9: there are kills, power-cuts" in capsys.readouterr().err
