"""Hashes of tensors, of files, and of the frozen parts a model is made of. All are sha256, as hexadecimal digits."""

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

SMALL_BYTES = 1 << 22
"""Files up to this size are read whole; of larger ones without a published hash as much is read in all."""
_WEIGHTS = "*.safetensors"
_BLOCK_BYTES = 1 << 16
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


def module_hash(*modules: nn.Module) -> str:
    """The hash of the tensors of modules."""
    return text_hash("".join(tensors_hash(module.state_dict()) for module in modules))


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


def part_identity(folder: Path, contents: bool = False) -> str:
    """What tells the weights and settings in a folder from others: "sha256:..." or "sampled:...".

    "sha256" covers the content of every *.safetensors and *.json file. That of large files is taken from the Hugging
    Face cache, or what `hf download --local-dir` left, and read only with `contents`. A large file that has no
    published hash makes the identity "sampled": of such files size and 4 MB, from all over them, are read. A copy has
    the identity of its original as long as both are of the same kind; `is_part` compares different kinds, too.
    """
    known = _identity(folder, "sha256", file_hash if contents else _known)
    return known or str(_identity(folder, "sampled", _sample_hash))


def is_part(folder: Path, identity: str, contents: bool = False) -> bool:
    """Whether a folder has this `part_identity`; reads all of it with `contents`, or if only that can tell."""
    if identity.startswith("sampled:"):
        return _identity(folder, "sampled", _sample_hash) == identity
    if not identity.startswith("sha256:"):  # version 0.1 took the weights alone
        return text_hash("".join(_known(path) or file_hash(path) for path in sorted(folder.glob(_WEIGHTS)))) == identity
    known = None if contents else _identity(folder, "sha256", _known)
    return (known or _identity(folder, "sha256", file_hash)) == identity


def _identity(folder: Path, kind: str, hash_of: Callable[[Path], str | None]) -> str | None:
    """The identity of a folder by the hashes of its files; None if one of them has none."""
    hashes = [(path.name, hash_of(path)) for path in sorted([*folder.glob(_WEIGHTS), *folder.glob("*.json")])]
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
    fetched = len(lines) == 3 and _PUBLISHED.fullmatch(lines[1]) and path.stat().st_mtime <= float(lines[2]) + 1
    return lines[1] if fetched else None


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
