"""`scripts/quickstart.py` runs steps two at a time: what ends it ends them, and what can never start is said."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from langdc.failures import Ended
from scripts import quickstart
from scripts.quickstart import Step, run_two_at_once


@pytest.fixture
def began(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[subprocess.Popen]:
    """The processes of the steps, which print below a temporary folder."""
    found, start = [], quickstart.start
    (tmp_path / "runs/sample").mkdir(parents=True)
    monkeypatch.setattr(quickstart, "ROOT", tmp_path)
    monkeypatch.setattr(quickstart, "start", lambda step: found.append(start(step)) or found[-1])
    return found


def step(title: str, code: str, **files: Path) -> Step:
    return Step(title, ["-S", "-c", code], **files)


WAITS = "import time; time.sleep(20)"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_is_passed_on(
    began: list[subprocess.Popen], monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    """It would be waited for, and whoever sent it would kill the script and leave the trainings behind."""
    monkeypatch.setattr(time, "sleep", lambda seconds: (_ for _ in ()).throw(Ended(number)))
    with pytest.raises(Ended):
        run_two_at_once([step("a", WAITS), step("b", WAITS), step("c", WAITS)])
    assert [process.returncode for process in began] == [-number, -number]


def test_a_step_that_fails_ends_the_others_and_its_output_is_named(
    began: list[subprocess.Popen], capsys: pytest.CaptureFixture
) -> None:
    with pytest.raises(SystemExit) as ended:
        run_two_at_once([step("bad", "import sys; sys.exit(3)"), step("good", WAITS)])
    assert ended.value.code == 3 and began[1].returncode == -signal.SIGTERM
    assert "bad ended with exit code 3" in (said := capsys.readouterr().out)
    assert "Its output: runs/sample/bad.log" in said


def test_a_step_whose_needs_nobody_makes_is_an_error(began: list[subprocess.Popen], tmp_path: Path) -> None:
    """It would wait for ever, and say nothing."""
    first = tmp_path / "runs/sample/captions/stage2/finished.json"
    maker = step("captions", f"import sys; open({str(tmp_path / 'made')!r}, 'w')", done=tmp_path / "made")
    with pytest.raises(ValueError, match=r"grounded needs runs/sample/captions/stage2/finished.json, .* delete runs"):
        run_two_at_once([maker, step("grounded", WAITS, needs=first)])
    assert [process.returncode for process in began] == [0]


def test_a_step_starts_when_what_it_needs_is_there(began: list[subprocess.Popen], tmp_path: Path) -> None:
    made = tmp_path / "made"
    then = step("then", f"import sys; sys.exit(not open({str(made)!r}))", needs=made)
    run_two_at_once(
        [then, step("first", f"open({str(made)!r}, 'w')"), step("before", WAITS, done=Path(sys.executable))]
    )
    assert [process.args[-1] for process in began][1:] == then.command[-1:] and len(began) == 2
