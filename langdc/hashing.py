"""Hashes of tensors, of files, and of the frozen parts a model is made of. All are sha256, as hexadecimal digits."""

import hashlib
import json
import re
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from langdc.jsonl import user_cache, writing

SMALL_BYTES = 1 << 22
"""Files up to this size are read whole; of larger ones without a published hash as much is read in all."""
_WEIGHTS = "*.safetensors"
_BLOCK_BYTES = 1 << 16
_SETTLED_SECONDS = 2.0
"""A file that is older has another time when it is written again."""
_KEPT_SECONDS = 90 * 24 * 3600.0  # older remembered hashes are deleted when another one is written
_PUBLISHED = re.compile(r"[0-9a-f]{64}")


def tensor_hash(tensor: Tensor, dtype: torch.dtype | None = None) -> str:
    """The hash of a tensor's type, shape and bytes; with `dtype` of its values in that type."""
    values = tensor.detach().to(dtype or tensor.dtype).cpu().contiguous()
    digest = hashlib.sha256(f"{values.dtype} {tuple(values.shape)}".encode())
    digest.update(values.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def tensors_hash(tensors: Mapping[str, Tensor]) -> str:
    """The hash of tensors and their names, whatever their order."""
    return text_hash("".join(f"{name} {tensor_hash(tensors[name])}\n" for name in sorted(tensors)))


def mark_read(tensors: Mapping[str, Tensor], folder: Path) -> None:
    """Note on tensors which files they are from, for `module_hash`; the note counts until one is changed in place."""
    files = " ".join(map(_seen, sorted(path for path in folder.iterdir() if path.is_file())))
    for name, tensor in tensors.items():
        if not tensor.is_inference():  # has no version
            tensor.read_from = (f"{name} {tensor.dtype} {files}", tensor._version)  # pyright: ignore[reportAttributeAccessIssue]


def module_hash(*modules: nn.Module) -> str:
    """The hash of the tensors of modules. That of tensors as they were read from the same files is remembered."""
    tensors = [module.state_dict(keep_vars=True) for module in modules]

    def compute() -> str:
        return text_hash("".join(map(tensors_hash, tensors)))

    every = [tensor for each in tensors for tensor in each.values()]
    notes = [_note(tensor) for tensor in every]
    if not all(notes) or sum(tensor.nbytes for tensor in every) <= SMALL_BYTES:
        return compute()
    # a few values tell a tensor that was rounded since from the one that was read
    some = [t.detach().flatten()[:: t.numel() // 16 + 1].double().cpu() for t in every]
    about = [(list(each), [(t.dtype, t.shape) for t in each.values()]) for each in tensors]
    return _remembered(f"{about} {notes} {[values.tolist() for values in some]}", compute)


def _note(tensor: Tensor) -> str | None:
    """What `mark_read` noted on a tensor that is as it was read."""
    text, version = getattr(tensor, "read_from", (None, None))
    return text if text and not tensor.requires_grad and tensor._version == version else None


def _remembered(key: str, compute: Callable[[], str]) -> str:
    """The hash that `compute` gave for this key before, kept in the user's cache; `key` says all that it depends on."""
    file = user_cache("hashes") / text_hash(key)
    found = file.read_text() if file.is_file() else ""
    if not found:  # never written, or lost in a power cut
        found = compute()
        with suppress(OSError):
            with writing(file, shared=True, sync=False) as partial:
                partial.write_text(found)
            for other in file.parent.iterdir():
                if other.stat().st_mtime < time.time() - _KEPT_SECONDS:
                    other.unlink()
    return found


def seen_hash(path: Path) -> str:
    """As `file_hash`; the content is not read again while path, size and times of a large file stay the same."""
    status = path.stat()
    if status.st_size <= SMALL_BYTES or time.time() - max(status.st_mtime, status.st_ctime) < _SETTLED_SECONDS:
        return file_hash(path)
    return _remembered(_seen(path), lambda: file_hash(path))


def _seen(path: Path) -> str:
    """What changes when a file is written anew."""
    status = path.stat()
    return f"{path.resolve()} {status.st_size} {status.st_mtime_ns} {status.st_ctime_ns}"


def text_hash(text: str) -> str:
    """The hash of a text."""
    return hashlib.sha256(text.encode()).hexdigest()


def json_hash(tree: Any) -> str:
    """The hash of a tree of settings or figures; the order of keys does not matter."""
    return text_hash(json.dumps(tree, sort_keys=True))


def file_hash(path: Path) -> str:
    """The hash of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def quick_hash(path: Path) -> str:
    """A hash that tells a file from others without reading much: published, of its content if small, or of a sample."""
    return _known(path) or f"sampled:{_sample_hash(path)}"


def content_hash(path: Path) -> str:
    """The `quick_hash` of a file; of a folder, the hash of those of all its files."""
    return quick_hash(path) if path.is_file() else json_hash(folder_files(path))


def folder_files(folder: Path) -> dict[str, str]:
    """The `quick_hash` of each file in a folder and below, by relative path, without hidden files and *.md."""
    return {str(path.relative_to(folder)): quick_hash(path) for path in _files(folder)}


def _files(folder: Path) -> list[Path]:
    """All files of a folder of weights, whatever their suffix: any of them may change a reply."""
    paths = ((path, path.relative_to(folder).parts) for path in sorted(folder.rglob("*")) if path.suffix != ".md")
    return [path for path, parts in paths if path.is_file() and not any(part.startswith(".") for part in parts)]


def part_identity(folder: Path, contents: bool = False) -> str:
    """What tells the weights and settings in a folder from others: "sha256:..." or "sampled:...".

    "sha256" covers the content of all `folder_files`. Large files are read only with `contents`; else their hash is
    taken from the Hugging Face cache, or from what `hf download --local-dir` left. A large file without a published
    hash makes the identity "sampled": its size and 4 MB, spread over the file, are read. A copy has the identity of its
    original as long as both are of the same kind; `is_part` compares different kinds, too.
    """
    known = _identity(folder, "sha256", file_hash if contents else _known)
    return known or str(_identity(folder, "sampled", _sample_hash))


def is_part(folder: Path, identity: str, contents: bool = False) -> bool:
    """Whether a folder has this `part_identity`; reads all of it with `contents`, or if only that can tell."""
    if not identity.startswith(("sampled:", "sha256:")):  # version 0.1 took the weights alone
        return text_hash("".join(_known(path) or seen_hash(path) for path in sorted(folder.glob(_WEIGHTS)))) == identity
    for files in (_files(folder), sorted([*folder.glob(_WEIGHTS), *folder.glob("*.json")])):  # before 0.3 the latter
        if identity.startswith("sampled:"):
            found = _identity(folder, "sampled", _sample_hash, files)
        else:
            found = None if contents else _identity(folder, "sha256", _known, files)
            found = found or _identity(folder, "sha256", file_hash if contents else seen_hash, files)
        if found == identity:
            return True
    return False


def _identity(
    folder: Path, kind: str, hash_of: Callable[[Path], str | None], files: Sequence[Path] | None = None
) -> str | None:
    """The identity of a folder by the hashes of its files; None if one of them has none."""
    hashes = [(path.relative_to(folder), hash_of(path)) for path in files or _files(folder)]
    lines = [f"{name} {found}\n" for name, found in hashes if found]
    return f"{kind}:{text_hash(''.join(lines))}" if len(lines) == len(hashes) else None


def _known(path: Path) -> str | None:
    """The hash of a file's content without much reading, None where that is not possible."""
    return _published(path) or (file_hash(path) if path.stat().st_size <= SMALL_BYTES else None)


def _published(path: Path) -> str | None:
    """The hash under which the Hugging Face hub published a large file, if it was fetched by their library."""
    blob = path.resolve()
    if path.is_symlink() and blob.parent.name == "blobs" and _PUBLISHED.fullmatch(blob.name):
        return blob.name
    note = path.parent / ".cache" / "huggingface" / "download" / f"{path.name}.metadata"
    lines = note.read_text().split() if note.is_file() else []  # commit, hash, seconds since the epoch
    changed = max(path.stat().st_mtime, path.stat().st_ctime)  # a copy may bring an earlier mtime along
    return lines[1] if len(lines) == 3 and _PUBLISHED.fullmatch(lines[1]) and changed <= float(lines[2]) + 1 else None


def _sample_hash(path: Path) -> str:
    size = path.stat().st_size
    if size <= SMALL_BYTES:
        return file_hash(path)
    digest = hashlib.sha256(str(size).encode())
    blocks = SMALL_BYTES // _BLOCK_BYTES
    with path.open("rb") as file:
        for number in range(blocks):
            file.seek(number * (size - _BLOCK_BYTES) // (blocks - 1))
            digest.update(file.read(_BLOCK_BYTES))
    return digest.hexdigest()
