"""What an error becomes at the door of a command: one line on standard error, and an exit code of docs/failures.md."""

import errno
import os
import re
import select
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from langdc.distributed import is_main_process, rank
from langdc.text import plain

MISTAKE, UNREADABLE, BUG, INTERRUPTED, UNREAD = 2, 3, 70, 130, 141
"""Exit codes, beside those of commands that ended: 0, 1, and `Exception.exit_code` where an error has one."""
VARIABLE = "LANGDC_TRACEBACK"
"""Set to anything, it shows where in the code an error arose, as --traceback does."""

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
"""By name, so that nothing heavy is imported: mistakes in what was given, and failures outside of this process."""
_MEMORY = re.compile("out of memory|can't allocate memory|ALLOC_FAILED", re.IGNORECASE)
_SYSTEM = re.compile(r"\bOs \{ code: (\d+)|\(os error (\d+)\)")  # as safetensors and other Rust libraries say it
_TORCH = re.compile("PytorchStreamWriter failed|inline_container.* unexpected pos|file write failed")
_SECONDS = 5.0
"""Other processes of a run wait so long before they speak: the launcher ends them when the main one failed likewise."""


def guarded(work: Callable[[list[str]], int], argv: Sequence[str]) -> int:
    """The exit code of `work`, which gets the arguments; an error is said in one line and becomes a code.

    With --traceback among the arguments, or LANGDC_TRACEBACK=1, it is also shown where the error arose.
    """
    words = [word for word in argv if word != "--traceback"]
    if flagged := len(words) < len(argv):
        os.environ[VARIABLE] = "1"  # for the processes that it starts, too
    try:
        try:
            return work(words)
        finally:
            if sys.stdout is not None:
                sys.stdout.flush()  # an error of this, too, can be said here and not later
    except (Exception, KeyboardInterrupt) as error:
        return _print_error(error)
    finally:
        if flagged:
            os.environ.pop(VARIABLE, None)


def _print_error(error: BaseException) -> int:
    """Print an error; its exit code."""
    code, message = _code_and_message(error)
    for stream in filter(None, (sys.stdout, sys.stderr)):
        try:
            stream.flush()
        except (OSError, ValueError):  # or the interpreter would try again at its end
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    if not is_main_process():
        if code not in (MISTAKE, UNREADABLE, BUG):
            return code
        time.sleep(_SECONDS)
        message = f"[process {rank()}] {message}"
    with suppress(OSError):
        if code == BUG or os.environ.get(VARIABLE):
            sys.stderr.write(plain("".join(traceback.format_exception(error))))
        sys.stderr.write(f"{plain(message)}\n" if message else "")
    return code


def _code_and_message(error: BaseException) -> tuple[int, str]:
    """The exit code of an error and what is said of it, "" where nobody listens."""
    text, names = str(error).strip() or type(error).__name__, {kind.__name__ for kind in type(error).__mro__}
    if isinstance(error, KeyboardInterrupt):
        return INTERRUPTED, "Interrupted. The same command resumes from what is complete."
    if (code := getattr(error, "exit_code", None)) is not None:
        return code, f"{text}. The same command resumes from there."
    if isinstance(error, BrokenPipeError) and _unread():
        return UNREAD, ""
    if {"MemoryError", "OutOfMemoryError"} & names or ("RuntimeError" in names and _MEMORY.search(text)):
        advice = "Take fewer frames or tokens, a smaller batch, a smaller dtype, or a larger device."
        return MISTAKE, f"error: Out of memory ({text.splitlines()[0]}). {advice}"
    if (found := _system_error(error)) is not None:
        files = " -> ".join(str(name) for name in (found.filename, found.filename2) if name is not None)
        said = f"{files}{': ' * bool(files)}{found.strerror}. {_ADVICE.get(found.errno or 0, '')}"
        return UNREADABLE, f"error: {said.strip()}"
    if isinstance(error, OSError) or names & _ELSEWHERE:
        return UNREADABLE, f"error: {text}"
    if "RecursionError" in names:
        return MISTAKE, f"error: A file is nested too deeply to be read ({text})."
    if names & _DAMAGED:
        return MISTAKE, f"error: {text}"
    return BUG, f"error: {type(error).__name__}: {text}. This is a mistake in langdc or in what it calls: report it."


def _system_error(error: BaseException, path: Path | None = None) -> OSError | None:
    """The error of the system behind one of a library, with the name of a file where it has none; None for others."""
    if isinstance(error, OSError) and error.errno is not None:
        if path is None or error.filename is not None:
            return error
        number, said = error.errno, error.strerror
    elif not isinstance(error, ValueError) and (match := _SYSTEM.search(str(error))):
        number, said = int(match[1] or match[2]), os.strerror(int(match[1] or match[2]))
    elif isinstance(error, RuntimeError) and _TORCH.search(str(error)):
        number, said = errno.EIO, "a write failed, as on a full disk"
    else:
        return None
    return OSError(number, said, None if path is None else str(path))


@contextmanager
def errors_naming(path: Path) -> Iterator[None]:
    """Give errors of the system the name of the file that is written, where they have none."""
    try:
        yield
    except Exception as error:
        found = _system_error(error, path)
        if found is None or found is error:
            raise
        raise found from error


def _unread() -> bool:
    """Whether nobody reads the output any more, such as after `| head`."""
    poll = select.poll()
    for stream in filter(None, (sys.stdout, sys.stderr)):
        with suppress(OSError):
            poll.register(stream.fileno(), 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))
