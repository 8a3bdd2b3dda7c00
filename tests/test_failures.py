"""What errors become: one line with the file's name and what to do, and an exit code of docs/failures.md."""

import errno
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import pytest
import torch
import yaml
from safetensors import SafetensorError

from langdc import cli, failures, jsonl
from langdc.cli import COMMANDS, main
from langdc.failures import _code_and_message, _system_error

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = sorted(
    str(path.relative_to(ROOT))
    for part in ("train", "eval", "data_prep", "scripts")
    for path in (ROOT / part).glob("*.py")
)
STORAGE_FULL = 'I/O error: Os { code: 28, kind: StorageFull, message: "No space left on device" }'


class _Killed(Exception):
    exit_code = 75


def one_line(said: str) -> str:
    assert len(said.strip().splitlines()) == 1 and "Traceback" not in said, said
    return said.strip()


ERRORS = [
    (ValueError("frames=0; give 1 or more."), 2, "frames=0; give 1 or more."),
    (OSError(errno.ENOSPC, "No space left on device", "log.jsonl"), 3, "log.jsonl: No space left on device. Make room"),
    (OSError(errno.EDQUOT, "Disk quota exceeded", "a"), 3, "a: Disk quota exceeded. Make room"),
    (PermissionError(errno.EACCES, "Permission denied", "a"), 3, "a: Permission denied. Get the right to it"),
    (OSError(errno.EROFS, "Read-only file system", "a"), 3, "a: Read-only file system. Get the right to it"),
    (FileNotFoundError(errno.ENOENT, "No such file or directory", "a"), 3, "a: No such file or directory. Check"),
    (IsADirectoryError(errno.EISDIR, "Is a directory", "a"), 3, "a: Is a directory. Choose another"),
    (NotADirectoryError(errno.ENOTDIR, "Not a directory", "a"), 3, "a: Not a directory. Choose another"),
    (OSError(errno.ENAMETOOLONG, "File name too long", "a" * 300), 3, "File name too long. Give a shorter name"),
    (OSError(errno.EMFILE, "Too many open files", "a"), 3, "a: Too many open files. Allow more"),
    (OSError(errno.EIO, "Input/output error", "a"), 3, "a: Input/output error. See whether the disk"),
    (OSError(errno.EXDEV, "Invalid cross-device link", "a", None, "b"), 3, "a -> b: Invalid cross-device link"),
    (OSError(errno.ENOSPC, "No space left on device"), 3, "error: No space left on device. Make room"),
    (ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused"), 3, "error: Connection refused."),
    (ValueError("x.safetensors is cut off (Os { code: 5, kind: Other })"), 2, "x.safetensors is cut off"),
    (OSError("the hub is not reached"), 3, "the hub is not reached"),
    (SafetensorError(f"Error while serializing: {STORAGE_FULL}"), 3, "No space left on device. Make room"),
    (SafetensorError("header too large"), 2, "header too large"),
    (RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed"), 3, "a write failed"),
    (RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 64 vs 0"), 3, "a write failed"),
    (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nSee ..."), 2, "Take fewer frames"),
    (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"), 2, "Out of memory"),
    (MemoryError(), 2, "Out of memory"),
    (BadZipFile("File is not a zip file"), 2, "not a zip file"),
    (yaml.YAMLError("a bad tag"), 2, "a bad tag"),
    (RecursionError("maximum recursion depth"), 2, "nested too deeply"),
    (ModuleNotFoundError("No module named 'peft'"), 2, "No module named 'peft'"),
    (KeyboardInterrupt(), 130, "Interrupted."),
    (_Killed("x stopped after step 3 of 5"), 75, "x stopped after step 3 of 5. The same command resumes"),
]


@pytest.mark.parametrize(("error", "code", "said"), ERRORS, ids=lambda value: type(value).__name__)
def test_errors_become_one_line_and_a_code(monkeypatch, capsys, error: BaseException, code: int, said: str):
    def fail(argv: list[str]) -> int:
        raise error

    monkeypatch.setattr("langdc.tools.doctor.main", fail)
    assert main(["doctor"]) == code
    assert said in one_line(capsys.readouterr().err)
    assert f"\n| {code} | " in (ROOT / "docs/failures.md").read_text()


def test_a_bug_says_that_it_is_one_and_where(monkeypatch, capsys):
    monkeypatch.setattr("langdc.tools.doctor.main", lambda argv: {}["gone"])
    assert main(["doctor"]) == failures.BUG
    said = capsys.readouterr().err
    assert said.startswith("Traceback") and "error: KeyError: 'gone'. This is a mistake in langdc" in said


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.words)
def test_traceback_shows_more_of_every_command_and_changes_no_code(monkeypatch, capsys, command: cli._Command):
    def fail(argv: list[str]) -> int:
        assert argv == []
        raise ValueError("a mistake")

    monkeypatch.setattr(command.target.replace(":", "."), fail)
    for words, shown in (([], False), (["--traceback"], True), ([], False)):
        assert main([*command.words.split(), *words]) == 2
        said = capsys.readouterr().err
        assert said.endswith("error: a mistake\n") and ("in fail" in said) == shown
    monkeypatch.setenv(failures.TRACEBACK_VARIABLE, "1")
    assert main(command.words.split()) == 2 and "in fail" in capsys.readouterr().err


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_script_goes_through_the_same_door(script: str):
    text = (ROOT / script).read_text()
    assert re.search(r"^main = door\(|guarded\(main", text, re.MULTILINE), script


def test_other_processes_say_which_they_are(monkeypatch, capsys):
    monkeypatch.setenv("RANK", "2")
    monkeypatch.setattr(failures, "_OTHERS_WAIT_SECONDS", 0.0)
    assert main(["ask"]) == 2
    assert capsys.readouterr().err.startswith("[process 2] error: langdc ask needs")


@pytest.mark.parametrize(
    "words", ["config-schema", "--help", "data mix", pytest.param("doctor", marks=pytest.mark.slow)]
)
def test_a_reader_that_ends_is_no_error(words: str):
    """Standard output is a pipe that nobody reads: what is printed at once, and what is printed at the end."""
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "langdc.cli", *words.split()]
    with os.fdopen(writing, "wb") as out:
        done = subprocess.run(command, stdout=out, stderr=subprocess.PIPE, check=False, cwd=ROOT)
    # argparse itself passes over an error of its help
    codes = (failures.UNREAD, 0) if words == "--help" else (failures.UNREAD,)
    assert done.returncode in codes and done.stderr == b""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_output_that_cannot_be_written_is_one():
    with Path("/dev/full").open("w") as full:
        command = [sys.executable, "-m", "langdc.cli", "config-schema"]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False, cwd=ROOT)
    assert done.returncode == 3 and "No space left on device" in one_line(done.stderr)


SIGNALS = {
    signal.SIGINT: "Interrupted.",
    signal.SIGTERM: "Ended by SIGTERM.",
    signal.SIGHUP: "Ended by SIGHUP.",
}


@pytest.mark.parametrize(
    ("at_work", "number"),
    [*((False, number) for number in SIGNALS), pytest.param(True, signal.SIGTERM, marks=pytest.mark.slow)],
    ids=str,
)
def test_a_signal_is_one_line_wherever_it_comes(tmp_path: Path, at_work: bool, number: signal.Signals):
    """While modules are imported, and while processes work for the command, which Ctrl-C reaches as well."""
    words = ["data", "sample", "--out", str(tmp_path / "d"), "--workers=2"] if at_work else ["compressors"]
    process = started(*words)
    maps, deadline = Path(f"/proc/{process.pid}/maps"), time.monotonic() + 100
    while time.monotonic() < deadline:
        if any((tmp_path / "d").glob("videos/*.mp4")) if at_work else "libtorch" in maps.read_text():
            break
        time.sleep(0.02)
    if number == signal.SIGINT:
        os.killpg(process.pid, number)
    else:
        os.kill(process.pid, number)
    said = process.communicate(timeout=120)[1]
    # Python ends itself by Ctrl-C where it came inside of code that is made at import, as of data classes
    assert process.returncode in (128 + number, -signal.SIGINT if number == signal.SIGINT else None), said
    assert said.splitlines()[-1] == f"{SIGNALS[number]} The same command resumes from what is complete."
    assert "Traceback" not in said, said
    assert f"\n| {128 + number} | " in (ROOT / "docs/failures.md").read_text()


def started(*words: str, code: str = "", **options: Any) -> subprocess.Popen:
    """A command, or Python code, in a session of its own; SIGHUP is not ignored there, even if it is here."""
    command = [sys.executable, *(["-c", code] if code else ["-m", "langdc.cli"]), *words]
    options |= {"stderr": subprocess.PIPE, "text": True, "start_new_session": True}
    return subprocess.Popen(
        command, cwd=ROOT, preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL), **options
    )


GUARDED = "import os, subprocess, sys, time; from langdc.failures import guarded, run_command\n"
WAITS = "lambda words: print('x', file=sys.stderr, flush=True) or time.sleep(60) or 0"


def test_a_signal_that_is_ignored_stays_ignored():
    """As nohup does with SIGHUP."""
    own = f"import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN); {GUARDED}sys.exit(guarded({WAITS}, []))"
    process = started(code=own)
    assert process.stderr is not None and process.stderr.readline() == "x\n"
    os.kill(process.pid, signal.SIGHUP)
    time.sleep(0.5)
    assert process.poll() is None
    os.kill(process.pid, signal.SIGTERM)
    assert process.communicate(timeout=60)[1].startswith("Ended by SIGTERM") and process.returncode == 143


def test_a_forked_worker_ends_by_the_signal_and_says_nothing():
    own = f"{GUARDED}def work(words):\n    child = os.fork()\n    time.sleep(1 if child else 60)\n"
    process = started(
        code=f"{own}    os.kill(child, 15)\n    return os.waitpid(child, 0)[1]\nsys.exit(guarded(work, []))"
    )
    assert process.communicate(timeout=60)[1] == "" and process.returncode == signal.SIGTERM


@pytest.mark.parametrize("launcher", [False, True])
def test_a_signal_reaches_the_command_that_is_waited_for(launcher: bool):
    """Also the processes of a launcher that hands nothing on, which ends with the code of the last one."""
    inner = f"{GUARDED}sys.exit(guarded({WAITS}, []))"
    between = f"import subprocess, sys; sys.exit(subprocess.call([sys.executable, '-c', {inner!r}, '--local_rank=0']))"
    command = f"[sys.executable, '-c', {between if launcher else inner!r}]"
    process = started(code=f"{GUARDED}sys.exit(guarded(lambda words: run_command({command}, {launcher}), []))")
    assert process.stderr is not None and process.stderr.readline() == "x\n"
    os.kill(process.pid, signal.SIGTERM)
    said = process.communicate(timeout=60)[1]
    assert said.startswith("Ended by SIGTERM") and process.returncode == 143


def test_errors_of_the_system_get_the_name_of_the_file(tmp_path: Path):
    nameless = [
        OSError(errno.ENOSPC, "No space left on device"),
        SafetensorError(f"Error while serializing: {STORAGE_FULL}"),
        RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed"),
    ]
    for error in nameless:
        with pytest.raises(OSError) as raised, jsonl.writing(tmp_path / "x"):
            raise error
        assert str(tmp_path / "x") in _code_and_message(raised.value)[1]
    with pytest.raises(FileNotFoundError) as raised, jsonl.writing(tmp_path / "x"):
        (tmp_path / "gone").read_bytes()
    assert raised.value.filename == str(tmp_path / "gone"), "one that has a name keeps it"
    assert _system_error(KeyError("x"), tmp_path) is None
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("save", ["safetensors.torch.save_file({'x': x}, 'x')", "torch.save({'x': x}, 'x')"])
def test_a_write_that_fails_within_a_library(tmp_path: Path, save: str):
    """Files may not be larger than a limit of the system, which fails as a full disk does."""
    code = (
        "import resource, pathlib, safetensors.torch, torch\nfrom langdc import failures\n"
        "def work(_):\n    x = torch.ones(1 << 16)\n    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        f"    with failures.errors_naming(pathlib.Path('x')):\n        {save}\n"
        "raise SystemExit(failures.guarded(work, []))"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path, env=environment)
    assert done.returncode == 3 and one_line(done.stderr).startswith("error: x: "), done.stderr


# ---- outputs


def test_an_output_is_tried_before_the_work(tmp_path: Path, monkeypatch):
    (tmp_path / "file").touch()
    jsonl.check_output(tmp_path / "file")
    jsonl.check_output(tmp_path / "new" / "folder" / "file")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    for path, error, said in (
        (tmp_path, ValueError, "is a folder"),
        (Path("/dev/null"), ValueError, "no regular file"),
        (tmp_path / "file" / "x", NotADirectoryError, str(tmp_path / "file")),
        (tmp_path / ("a" * 300), OSError, "aaa"),
        (tmp_path / ("a" * 250), OSError, "aaa"),
        (Path("/proc/x.html"), OSError, "/proc"),
    ):
        with pytest.raises(error, match=re.escape(said)):
            jsonl.check_output(path)


def commands_with_outputs(out: str) -> dict[str, list[str]]:
    return {
        "compare": ["compare", "clip.mp4", "what ?", "--model", "gone", "--keep", "0.5", "--out", out],
        "preview": ["data", "preview", "sample/langdc/stage1", "--out", out],
        "import": ["data", "import", "README.md", "--out", out],
        "mix": ["data", "mix", "stage1", "--root", "gone", "--out", out],
        "benchmark": ["data", "benchmark", "mvbench", "--root", "gone", "--out", out],
        "caption": ["data", "caption", "tests", "--teacher", "gone", "--out", out],
        "export": ["export", "gone", out],
        "convert": ["convert", "llava_video", "gone", out],
        "check": ["data", "check", "gone.jsonl", "--out", out],
    }


@pytest.mark.parametrize("command", commands_with_outputs(""))
def test_every_command_tries_its_output_first(command: str, tmp_path: Path, capsys):
    """Before it notices that what it reads is not there."""
    (tmp_path / "file").touch()
    for out, said in ((f"{tmp_path}/file/x", f"{tmp_path}/file"), (f"{tmp_path}/{'a' * 300}", "File name too long")):
        assert main(commands_with_outputs(out)[command]) in (2, 3)
        error = capsys.readouterr().err
        assert said in error or "give a file in a folder that exists" in error, error
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("command", commands_with_outputs(""))
def test_a_refused_command_leaves_nothing(command: str, tmp_path: Path, capsys):
    assert main(commands_with_outputs(f"{tmp_path}/new/folder/x")[command]) in (2, 3)
    assert list(tmp_path.iterdir()) == []
    one_line(capsys.readouterr().err.split("error: ")[1].split("\n")[0])


def test_a_folder_goes_again_unless_it_holds_something(tmp_path: Path):
    def failing(*files: str) -> None:
        with jsonl.making_folder(tmp_path / "a" / "b", "run.json"):
            for file in files:
                (tmp_path / "a" / "b" / file).write_text("x" if file != "empty" else "")
            raise KeyError

    for files in ((), ("run.json", "empty")):
        with pytest.raises(KeyError):
            failing(*files)
        assert list(tmp_path.iterdir()) == []
    with pytest.raises(KeyError):
        failing("work")
    assert (tmp_path / "a" / "b" / "work").is_file()
    (tmp_path / "c").mkdir()
    with pytest.raises(KeyError), jsonl.making_folder(tmp_path / "c"):
        raise KeyError
    assert (tmp_path / "c").is_dir(), "it was there before"


def test_a_name_in_another_encoding_is_written_as_json_writes_it(tmp_path: Path):
    name = os.fsdecode(b"caf\xe9.mp4")
    jsonl.write_lines(tmp_path / "a", [{"x": name}])
    jsonl.append(tmp_path / "a", {"x": name})
    jsonl.write_json(tmp_path / "b", {"x": name})
    assert [line["x"] for line in jsonl.read(tmp_path / "a")] == [name, name]
    assert json.loads((tmp_path / "b").read_text())["x"] == name


def test_output_that_is_closed_or_lacks_letters_costs_nothing():
    run = [sys.executable, "-m", "langdc.cli", "config-schema"]
    assert subprocess.run(["sh", "-c", f"{shlex.join(run)} >&-"], cwd=ROOT, check=False).returncode == 0
    code = "from langdc.failures import guarded; raise SystemExit(guarded(lambda _: print('a \u732b') or 0, []))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
        capture_output=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, b"a ?\n")
