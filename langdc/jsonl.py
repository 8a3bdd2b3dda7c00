"""Files of JSON lines, locks, and files and folders that are written whole or not at all, also after a power cut.

These are written under a `.partial` name, flushed to the disk, and renamed. After a rename alone the content
may still be missing on the disk: delete older copies only after `sync_folder`.
"""

import errno
import fcntl
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from functools import cache
from pathlib import Path
from secrets import token_hex
from typing import IO, Any

from langdc.failures import errors_naming

PARTIAL = ".partial"
LOCK = ".lock"
"""The lock of a folder, in it."""
_WAIT_SECONDS = 10.0


def read(path: Path, strict: bool = False) -> list[dict]:
    """The objects of a file of JSON lines, in order, without empty lines; ValueError names file and line of others.

    An absent file gives [], and a last line that a kill cut short is left out; with `strict` both are errors.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:  # also one that its writer has just replaced or deleted
        if strict:
            raise
        return []
    lines = [(n, line) for n, line in enumerate(content.split(b"\n"), 1) if line.strip()]
    found: list[dict] = []
    for number, line in lines:
        try:
            found.append(parse(line))
        except ValueError as error:
            if number == lines[-1][0] and not strict:
                break
            raise ValueError(
                f"{path}, line {number}, is {error}. Delete the file and fetch or make it again."
            ) from None
    return found


def parse(line: bytes) -> dict:
    """The object of a line; ValueError says what the line is instead."""
    try:
        value = json.loads(line.decode("utf-8-sig"), object_pairs_hook=object_of_pairs)
    except json.JSONDecodeError as error:
        raise ValueError(f"not valid JSON ({error.msg}, column {error.colno})") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 text (byte {error.start + 1})") from None
    except RecursionError:
        raise ValueError("not valid JSON (nested too deeply)") from None
    if not isinstance(value, dict):
        raise ValueError(f"no object of names and values: it holds a {type(value).__name__}")
    return value


def object_of_pairs(pairs: list[tuple[str, Any]]) -> dict:
    """A JSON object's names and values; ValueError if a name is given twice."""
    values = dict(pairs)
    if len(values) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"not one record: it gives {next(n for n in names if names.count(n) > 1)!r} twice")
    return values


def read_json(path: Path) -> Any:
    """The contents of a JSON file; ValueError with its name if it is damaged."""
    try:
        return json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not valid JSON ({error}); it was cut off or changed. Copy it again.") from None


def append(path: Path, *values: dict) -> None:
    """Add a line per value, after removing a last line that a kill cut short. One process at a time may append."""
    if not values:
        return
    make_folder(path.parent)
    with errors_naming(path), path.open("a+b") as file:
        _mend(file)
        file.write("".join(_line(value) for value in values).encode(errors=_ESCAPED))


def _mend(file: IO[bytes]) -> None:
    """Take off a broken last line, or add the end that a whole one lacks."""
    size = start = file.seek(0, os.SEEK_END)
    tail = b""
    while start > 0 and b"\n" not in tail.rstrip():
        step = min(start, 1 << 16)
        start = file.seek(start - step)
        tail = file.read(step) + tail
    begin = tail.rstrip().rfind(b"\n") + 1
    if not tail[begin:].strip():
        return
    try:
        parse(tail[begin:])
    except ValueError:
        file.truncate(size - len(tail) + begin)
    else:
        file.write(b"" if tail.endswith(b"\n") else b"\n")


_ESCAPED = "backslashreplace"
"""Write a lone surrogate, such as from a file name in another encoding, as JSON's escape."""


def _line(value: dict) -> str:
    return json.dumps(value, ensure_ascii=False) + "\n"


def write_lines(path: Path, values: Iterable[dict]) -> None:
    """Write a file of JSON lines, whole or not at all."""
    with writing(path) as partial, partial.open("w", encoding="utf-8", errors=_ESCAPED) as file:
        file.writelines(_line(value) for value in values)


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file, whole or not at all."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def user_cache(name: str) -> Path:
    """The folder of this name in $XDG_CACHE_HOME/langdc, by default ~/.cache/langdc, or among temporary files."""
    with suppress(OSError, RuntimeError):
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()) / "langdc" / name
        home.mkdir(parents=True, exist_ok=True)
        if os.access(home, os.W_OK):
            return home
    home = Path(tempfile.gettempdir()) / f"langdc-{os.getuid()}"
    home.mkdir(exist_ok=True, mode=0o700)
    if home.lstat().st_uid != os.getuid():
        raise ValueError(f"{home} belongs to another user. Set XDG_CACHE_HOME to a folder of your own.")
    (home / name).mkdir(exist_ok=True)
    return home / name


def write_text(path: Path, text: str) -> None:
    """Write a text file in UTF-8, whole or not at all."""
    with writing(path) as partial:
        partial.write_text(text, encoding="utf-8", errors=_ESCAPED)


@contextmanager
def locked(path: Path, doing: str, seconds: float = 0.0) -> Iterator[None]:
    """Hold the lock file `path`, made with its folder, until the context or this process ends, however it ends.

    ValueError "Another process {doing}" if one has it for `seconds` more. A forked process holds the lock, too.
    On a network file system without locks, a warning says that nothing keeps a second process out.
    """
    deadline = time.monotonic() + seconds
    make_folder(path.parent)
    while (file := _locked_file(path)) is None:
        if time.monotonic() >= deadline:
            raise ValueError(
                f"Another process {doing}. Wait until it is done, or end it: it may have outlived a launcher that was "
                "killed."
            )
        time.sleep(0.05)
    with file:
        yield


def _locked_file(path: Path) -> IO[bytes] | None:
    """A file, open and locked; None where another process has it, or has just renamed or deleted what was opened."""
    # never through a link that somebody else has put there
    file = open(path, "ab", opener=lambda name, flags: os.open(name, flags | os.O_NOFOLLOW, 0o666))  # noqa: SIM115
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    except OSError as error:
        _warn_unlocked(str(path.parent), error.strerror or "")
    with suppress(FileNotFoundError):
        if os.path.samestat(path.stat(), os.fstat(file.fileno())):
            return file
    file.close()
    return None


@cache
def _warn_unlocked(folder: str, reason: str) -> None:
    from langdc.log import get_logger  # brings rich

    get_logger(__name__).warning(
        "%s is on a file system without locks (%s): nothing keeps a second process from writing there.", folder, reason
    )


@contextmanager
def writing(path: Path, shared: bool = False, sync: bool = True) -> Iterator[Path]:
    """Yields the path to write a file to; it is renamed to `path` once it is whole and, with `sync`, on the disk.

    Its permissions are those of the umask, whatever the writer sets (safetensors: the owner's alone). A symbolic link
    stays, and what it names is written. `shared`: several processes may write the same file; the last one stays.
    Otherwise ValueError if another process is writing it. Without `sync`, which takes tens of milliseconds, a power
    cut may leave an empty file.
    """
    path = path.resolve() if path.is_symlink() else path
    partial = path.with_name(f"{path.name}.{token_hex(4)}{PARTIAL}" if shared else f"{path.name}{PARTIAL}")
    if partial.is_symlink():
        partial.unlink()
    with nullcontext() if shared else locked(partial, f"is writing {path}", _WAIT_SECONDS):
        partial.open("wb").close()  # empties what a killed process left
        mode = partial.stat().st_mode
        try:
            with errors_naming(path):
                yield partial
                partial.chmod(mode)
                if sync:
                    flush(partial)
                partial.replace(path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
    if sync:
        flush(path.parent)


@contextmanager
def writing_folder(path: Path) -> Iterator[Path]:
    """Yields a new, empty folder to write into; it is renamed to `path` once everything in it is on the disk.

    ValueError if another process is writing it.
    """
    partial, lock = path.with_name(f"{path.name}{PARTIAL}"), path.with_name(f".{path.name}{LOCK}")
    with making_folder(path.parent), locked(lock, f"is writing {path}"), errors_naming(path):
        try:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir()
            yield partial
            sync_folder(partial)
            partial.replace(path)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
        finally:
            lock.unlink(missing_ok=True)
    flush(path.parent)


def names_in(folder: Path) -> set[str]:
    """The names in a folder, without locks and unfinished (.partial) files; empty if there is no folder."""
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    return {name for name in names if not name.startswith(LOCK) and not name.endswith(PARTIAL)}


def make_folder(path: Path) -> None:
    """Make a folder and its parents, and wait until they are on the disk."""
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(parents=True, exist_ok=True)
    flush(*(folder.parent for folder in missing))


def sync_folder(folder: Path) -> None:
    """Wait until everything in a folder is on the disk; its files get the folder's permissions to read and write."""
    allowed = folder.stat().st_mode & 0o666
    for path in (*folder.rglob("*"), folder):
        if path.is_file() and not path.is_symlink():
            path.chmod(path.stat().st_mode | allowed)
        if not path.is_symlink():
            flush(path)


def flush(*paths: Path) -> None:
    """Wait until the contents of files, and the names in folders, are on the disk."""
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        except OSError as error:
            if not path.is_dir():  # some file systems of networks refuse it for a folder
                raise OSError(error.errno, f"{path} may not be on the disk: {error.strerror}") from None
        finally:
            os.close(descriptor)


def check_output(path: Path) -> None:
    """Check, before the work begins, that its result can be written: ValueError if `path` is a folder or a device,
    OSError with a name if no file can be made there. Folders that are missing are no error.
    """
    if path.exists() and not path.is_file():
        raise ValueError(f"{path} is {'a folder' if path.is_dir() else 'no regular file'}; give the name of a file.")
    path.with_name(f"{path.name}.12345678.partial").exists()  # raises OSError if the name is too long
    parent = next(folder for folder in path.absolute().parents if folder.exists())
    if not parent.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(parent))
    with tempfile.TemporaryFile(dir=parent):
        pass


@contextmanager
def making_folder(path: Path, *spare: str) -> Iterator[None]:
    """Make a folder and its parents. If the work in the context fails, the new ones are removed, unless they hold more
    than empty files and files whose names match one of the `spare` patterns.
    """
    new = [folder for folder in (path, *path.parents) if not folder.exists()]
    make_folder(path)
    try:
        yield
    except BaseException:
        files = [file for file in path.rglob("*") if not file.is_dir()]
        if new and not any(file.stat().st_size for file in files if not any(map(file.match, spare))):
            shutil.rmtree(path, ignore_errors=True)
        for folder in new[1:]:
            with suppress(OSError):  # other processes may use it meanwhile
                folder.rmdir()
        raise
