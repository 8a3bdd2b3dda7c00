"""Turns errors of commands into one line on standard error and an exit code of docs/failures.md."""

import errno
import os
import re
import select
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from langdc.distributed import is_main_process, rank
from langdc.text import plain

MISTAKE, UNREADABLE, BUG, INTERRUPTED, UNREAD = 2, 3, 70, 130, 141
"""Exit codes of errors without an `exit_code` of their own. A command that ends by itself has 0 or 1."""
ENDING = (signal.SIGTERM, signal.SIGHUP)
"""Signals that end a command as Ctrl-C does, with 128 and their number as its exit code."""
TRACEBACK_VARIABLE = "LANGDC_TRACEBACK"
"""Environment variable that, if it is set, does what --traceback does."""

_ADVICE = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT, errno.EFBIG), "Make room on the disk; the same command continues."),
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), "Get the right to it, or choose another place."),
    **dict.fromkeys((errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ELOOP), "Choose another place."),
    **dict.fromkeys((errno.EMFILE, errno.ENFILE), "Allow more open files: ulimit -n 65536"),
    **dict.fromkeys((errno.EIO, errno.ESTALE), "See whether the disk is full, damaged or gone."),
    errno.ENOENT: "Check the path.",
    errno.ENAMETOOLONG: "Give a shorter name.",
}
_DAMAGED = {"SafetensorError", "UnpicklingError", "BadZipFile", "YAMLError", "TarError", "EOFError", "TemplateError"}
_DAMAGED |= {"RecursionError", "ImportError", "ValueError"}
_ELSEWHERE = {"DistError", "FFmpegError", "HTTPException", "CommError", "UsageError", "AuthenticationError"}
"""Names of error classes (nothing heavy is imported for them): faults of the input, failures outside of the process."""
_MEMORY = re.compile("out of memory|can't allocate memory|ALLOC_FAILED", re.IGNORECASE)
_SYSTEM = re.compile(r"\bOs \{ code: (\d+)|\(os error (\d+)\)")  # in messages of safetensors and other Rust libraries
_TORCH = re.compile("PytorchStreamWriter failed|inline_container.* unexpected pos|file write failed")
_OTHERS_WAIT_SECONDS = 5.0
"""Other processes wait before they print an error: if the main one failed, too, the launcher ends them meanwhile."""


def guarded(work: Callable[[list[str]], int], argv: Sequence[str]) -> int:
    """Run a command on its arguments; returns its exit code, or that of its error, which is printed in one line.

    With --traceback among the arguments, or LANGDC_TRACEBACK=1, the traceback is printed, too.
    """
    words = [word for word in argv if word != "--traceback"]
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # closed by who started this, as with >&-
            setattr(sys, name, Path(os.devnull).open("w"))  # noqa: SIM115
        elif getattr(stream, "errors", "") == "strict" and hasattr(stream, "reconfigure"):
            # letters that the terminal does not have cost no result
            stream.reconfigure(errors="replace")
    if flagged := len(words) < len(argv):
        os.environ[TRACEBACK_VARIABLE] = "1"  # for the processes that it starts, too
    taken = _take_signals()
    try:
        try:
            return work(words)
        finally:
            sys.stdout.flush()  # here an error of it can still be reported
    except (Exception, KeyboardInterrupt) as error:
        return _print_error(error)
    finally:
        for number in taken:
            signal.signal(number, signal.SIG_DFL)
        if flagged:
            os.environ.pop(TRACEBACK_VARIABLE, None)


class Ended(KeyboardInterrupt):
    """A signal asked the command to end; `args` are its number."""


def _take_signals() -> list[signal.Signals]:
    """Let SIGTERM and SIGHUP raise `Ended`, as Ctrl-C raises KeyboardInterrupt, unless they do something else already.

    Of a launcher's processes only the main one does it: the others end at once, also while they wait for each other.
    """
    own, able = os.getpid(), threading.current_thread() is threading.main_thread() and is_main_process()

    def end(number: int, frame: Any) -> None:
        signal.signal(number, signal.SIG_DFL)  # the second one ends at once
        if os.getpid() == own:
            raise Ended(number)
        os.kill(os.getpid(), number)  # a worker that was forked

    taken = [number for number in ENDING if able and signal.getsignal(number) == signal.SIG_DFL]
    for number in taken:
        signal.signal(number, end)
    return taken


def run_command(command: Sequence[str], launcher: bool = False, **options: Any) -> int:
    """Run a command of ours, and pass SIGTERM and SIGHUP on to it, or to what a `launcher` began; its exit code."""
    process = subprocess.Popen(command, **options)
    try:
        process.wait()
    except Ended as ended:
        for number in _ranks_below(process.pid) if launcher else [process.pid]:
            with suppress(ProcessLookupError):
                os.kill(number, *ended.args)
    except KeyboardInterrupt:  # which the terminal sent to the command as well
        process.wait()
        raise
    return code if (code := process.wait()) >= 0 else 128 - code


def _ranks_below(launcher: int) -> list[int]:
    """The processes that a launcher began, without what they forked, such as data loaders; itself if there are none."""
    import psutil

    found: dict[int, int] = {}  # by process its parent
    with suppress(psutil.Error):
        for each in psutil.Process(launcher).children(recursive=True):
            with suppress(psutil.Error):  # it ended meanwhile
                if "--local_rank=" in " ".join(each.cmdline()):
                    found[each.pid] = each.ppid()
    return [number for number, parent in found.items() if parent not in found] or [launcher]


def _print_error(error: BaseException) -> int:
    """Print an error; returns its exit code."""
    code, message = _code_and_message(error)
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):  # or the interpreter would try again at its end
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    if not is_main_process():
        if code not in (MISTAKE, UNREADABLE, BUG):
            return code
        time.sleep(_OTHERS_WAIT_SECONDS)
        message = f"[process {rank()}] {message}"
    with suppress(OSError):
        _print_traceback(error, code)
        sys.stderr.write(f"{plain(message)}\n" if message else "")
    return code


def told(error: BaseException) -> str:
    """The message of an error, for a server that keeps running; prints the traceback where a command would print it."""
    code, message = _code_and_message(error)
    _print_traceback(error, code)
    return plain(message).removeprefix("error: ")


def _print_traceback(error: BaseException, code: int) -> None:
    if code == BUG or os.environ.get(TRACEBACK_VARIABLE):
        sys.stderr.write(plain("".join(traceback.format_exception(error))))


def _code_and_message(error: BaseException) -> tuple[int, str]:
    """The exit code and the message of an error; "" if nobody reads the output any more."""
    text, names = str(error).strip() or type(error).__name__, {kind.__name__ for kind in type(error).__mro__}
    if isinstance(error, KeyboardInterrupt):
        number = error.args[0] if isinstance(error, Ended) else signal.SIGINT
        what = "Interrupted" if number == signal.SIGINT else f"Ended by {signal.Signals(number).name}"
        return 128 + number, f"{what}. The same command resumes from what is complete."
    if (code := getattr(error, "exit_code", None)) is not None:
        return code, f"{text}. The same command resumes from there."
    if isinstance(error, BrokenPipeError) and _unread():
        return UNREAD, ""
    if {"MemoryError", "OutOfMemoryError"} & names or ("RuntimeError" in names and _MEMORY.search(text)):
        advice = "Take fewer frames or tokens, a smaller batch, a smaller dtype, or a larger device."
        return MISTAKE, f"error: Out of memory ({text.splitlines()[0]}). {advice}"
    if (system_error := _system_error(error)) is not None:
        files = " -> ".join(str(name) for name in (system_error.filename, system_error.filename2) if name)
        advice = _ADVICE.get(system_error.errno or 0, "")
        return UNREADABLE, f"error: {files}{': ' * bool(files)}{system_error.strerror}. {advice}".rstrip()
    if isinstance(error, OSError) or names & _ELSEWHERE:
        return UNREADABLE, f"error: {text}"
    if "RecursionError" in names:
        return MISTAKE, f"error: A file is nested too deeply to be read ({text})."
    if names & _DAMAGED:
        return MISTAKE, f"error: {text}"
    return BUG, f"error: {type(error).__name__}: {text}. This is a mistake in langdc or in what it calls: report it."


def _system_error(error: BaseException, path: Path | None = None) -> OSError | None:
    """The operating system's error behind an error, which names `path` if it named no file; None if there is none."""
    if isinstance(error, OSError) and error.errno is not None:
        if path is None or error.filename is not None:
            return error
        number, reason = error.errno, error.strerror
    elif not isinstance(error, ValueError) and (match := _SYSTEM.search(str(error))):
        number = int(match[1] or match[2])
        reason = os.strerror(number)
    elif isinstance(error, RuntimeError) and _TORCH.search(str(error)):
        number, reason = errno.EIO, "a write failed, as on a full disk"
    else:
        return None
    return OSError(number, reason, None if path is None else str(path))


@contextmanager
def errors_naming(path: Path) -> Iterator[None]:
    """Add the name of the file that is written to errors of the operating system that name none."""
    try:
        yield
    except Exception as error:
        named = _system_error(error, path)
        if named is None or named is error:
            raise
        raise named from error


def _unread() -> bool:
    """Whether nobody reads the output any more, such as after `| head`."""
    poll = select.poll()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError):
            poll.register(stream.fileno(), 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))
