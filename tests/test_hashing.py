"""Hashes of tensors, and what frozen parts are told by without being read."""

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from langdc import hashing
from langdc.hashing import is_part, mark_read, module_hash, part_identity, seen_hash, tensor_hash, tensors_hash

LARGE = b"".join(number.to_bytes(4, "big") for number in range(hashing.SMALL_BYTES // 2))


def test_a_hash_depends_on_type_shape_and_values() -> None:
    one = torch.arange(6.0)
    others = [one.view(2, 3), one.to(torch.bfloat16), one + 1]
    assert len({tensor_hash(tensor) for tensor in [one, *others]}) == 4
    assert tensor_hash(one) == tensor_hash(torch.arange(12.0).view(6, 2).T[0] / 2)  # strides do not count
    assert tensor_hash(one) == tensor_hash(one.to(torch.bfloat16), torch.float32)


def test_a_hash_of_tensors_depends_on_names_and_not_on_order() -> None:
    one = {"a": torch.ones(2), "b": torch.zeros(2)}
    assert tensors_hash(one) == tensors_hash(dict(reversed(one.items())))
    changes = ({"b": torch.zeros(2, 1)}, {"b": torch.zeros(2).double()}, {"b": torch.ones(2)}, {"c": torch.zeros(2)})
    assert len({tensors_hash({**one, **change}) for change in ({}, *changes)}) == 5


def test_a_hash_of_modules() -> None:
    model, same, other = (nn.Linear(2, 2) for _ in range(3))
    same.load_state_dict(model.state_dict())
    assert module_hash(model) == module_hash(same) != module_hash(other)
    assert module_hash(model, other) != module_hash(other, model)


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    """A folder with a large file that nobody published."""
    folder = tmp_path / "plain"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(LARGE)
    (folder / "config.json").write_text("{}")
    return folder


def _cached(plain: Path) -> Path:
    """The same, as the Hugging Face cache has it."""
    blobs, snapshot = plain.parent / "hub" / "blobs", plain.parent / "hub" / "snapshots" / "main"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for path in plain.iterdir():
        large = path.suffix == ".safetensors"
        blob = blobs / (hashing.file_hash(path) if large else "9" * 40)
        shutil.copyfile(path, blob)
        (snapshot / path.name).symlink_to(blob)
    return snapshot


def _downloaded(plain: Path) -> Path:
    """The same, as `hf download --local-dir` leaves it."""
    folder = plain.parent / "local"
    shutil.copytree(plain, folder)
    notes = folder / ".cache" / "huggingface" / "download"
    notes.mkdir(parents=True)
    for path in plain.iterdir():
        seconds = (folder / path.name).stat().st_ctime
        (notes / f"{path.name}.metadata").write_text(f"{'1' * 40}\n{hashing.file_hash(path)}\n{seconds}\n")
    return folder


@pytest.mark.parametrize("place", [_cached, _downloaded])
def test_a_published_part_is_not_read(
    plain: Path, monkeypatch: pytest.MonkeyPatch, place: Callable[[Path], Path]
) -> None:
    folder, read = place(plain), hashing.file_hash
    whole = part_identity(plain, contents=True)
    monkeypatch.setattr(
        hashing, "file_hash", lambda path: read(path) if path.suffix == ".json" else pytest.fail("read")
    )
    assert part_identity(folder) == whole and is_part(folder, whole) and not is_part(folder, f"sha256:{'0' * 64}")
    monkeypatch.undo()
    assert whole == part_identity(folder, contents=True) and whole.startswith("sha256:")


@pytest.mark.parametrize("seconds", [0, 2**33], ids=["copied with its time", "changed"])
def test_a_file_that_changed_after_its_download_is_not_what_was_published(plain: Path, seconds: int) -> None:
    folder = _downloaded(plain)
    for note in folder.glob(".cache/huggingface/download/*"):  # as if that were some time ago
        note.write_text(note.read_text().replace(note.read_text().split()[2], f"{time.time() - 60}"))
    for file in ("model.safetensors", "config.json"):
        os.utime(folder / file, (0, 0))
    before = part_identity(folder)
    (folder / "model.safetensors").write_bytes(LARGE[::-1])
    os.utime(folder / "model.safetensors", (seconds, seconds))
    assert part_identity(folder) != before and not is_part(folder, before)


def test_a_copy_is_the_same_part_and_a_change_is_not(plain: Path) -> None:
    identity = part_identity(plain)
    assert identity.startswith("sampled:")
    copy = Path(shutil.copytree(plain, plain.parent / "copy", copy_function=shutil.copyfile))
    assert part_identity(copy) == identity and is_part(copy, identity)
    changes = (("config.json", b"{ }"), ("model.safetensors", LARGE[:-1]), ("model.safetensors", LARGE[:-1] + b"x"))
    for name, content in changes:
        (copy / name).write_bytes(content)
        assert part_identity(copy) != identity and not is_part(copy, identity)
        shutil.copyfile(plain / name, copy / name)
    assert part_identity(copy) == identity


@pytest.mark.parametrize("name", ["pytorch_model.bin", "chat_template.jinja", "tokenizer.model", "deep/merges.txt"])
def test_a_part_is_all_files_that_may_be_read(plain: Path, name: str) -> None:
    """But what earlier versions noted of a folder still holds."""
    earlier = part_identity(plain)
    (plain / name).parent.mkdir(exist_ok=True)
    (plain / name).write_text("one")
    identity = part_identity(plain)
    (plain / "README.md").write_text("not read")
    (plain / ".hidden").write_text("not read")
    assert part_identity(plain) == identity != earlier and is_part(plain, identity) and is_part(plain, earlier)
    (plain / name).write_text("two")
    assert not is_part(plain, identity)


def test_identities_of_both_kinds_are_compared(plain: Path) -> None:
    cached = _cached(plain)
    assert is_part(cached, part_identity(plain)) and is_part(plain, part_identity(cached))
    assert is_part(plain, hashing.text_hash(hashing.file_hash(plain / "model.safetensors")))  # as 0.1 wrote it
    assert not is_part(plain, "0" * 64)


def test_a_small_part_is_read_whole(plain: Path) -> None:
    (plain / "model.safetensors").write_bytes(LARGE[: hashing.SMALL_BYTES])
    assert part_identity(plain) == part_identity(plain, contents=True)


# ---- what is remembered


@pytest.fixture
def hashed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list:
    """Whatever is hashed, file or tensor; nothing is too small or too new to be remembered."""
    found: list = []
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(hashing, "SMALL_BYTES", 0)
    monkeypatch.setattr(hashing, "_SETTLED_SECONDS", 0)
    for name in ("file_hash", "tensor_hash"):
        whole = getattr(hashing, name)
        monkeypatch.setattr(hashing, name, lambda one, whole=whole: (found.append(one), whole(one))[1])
    return found


def _read(folder: Path, dtype: torch.dtype = torch.float32) -> nn.Module:
    """A module with the weights in a folder."""
    model = nn.Linear(40, 40).requires_grad_(False).to(dtype)
    model.load_state_dict(load_file(folder / "model.safetensors"))
    mark_read(model.state_dict(keep_vars=True), folder)
    return model


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    save_file(nn.Linear(40, 40).state_dict(), tmp_path / "model.safetensors")
    return tmp_path


def test_any_file_of_a_folder_may_be_what_was_read(weights: Path, hashed: list) -> None:
    module_hash(_read(weights))
    (weights / "pytorch_model.bin").write_bytes(b"other")
    module_hash(_read(weights))
    assert len(hashed) == 4


def test_a_part_as_it_was_read_is_hashed_once(weights: Path, hashed: list) -> None:
    first = module_hash(_read(weights))
    assert len(hashed) == 2
    assert module_hash(_read(weights)) == first and len(hashed) == 2
    moved = _read(weights).to("cpu").eval()
    assert module_hash(moved) == first and len(hashed) == 2
    assert module_hash(nn.ModuleDict({"a": moved})) != first and len(hashed) == 4  # under other names


CHANGES: dict[str, Callable[[nn.Linear], object]] = {
    "a value": lambda model: model.weight[3].zero_(),
    "a bias": lambda model: model.bias[0].add_(1),
    "another type": lambda model: model.double(),
    "rounded": lambda model: model.bfloat16().float(),
    "replaced": lambda model: setattr(model, "bias", nn.Parameter(torch.zeros(40), requires_grad=False)),
    "trained": lambda model: model.requires_grad_(True).weight.data.mul_(2),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_part_that_changed_is_hashed_anew(weights: Path, hashed: list, change: str) -> None:
    module_hash(_read(weights))
    model = _read(weights)
    CHANGES[change](model)
    plain = nn.Linear(40, 40).to(model.weight.dtype)
    plain.load_state_dict(model.state_dict())
    hashed.clear()
    assert module_hash(model) == module_hash(plain) and len(hashed) == 4


def test_a_part_whose_file_changed_is_hashed_anew(weights: Path, hashed: list) -> None:
    first, file = module_hash(_read(weights)), weights / "model.safetensors"
    times = file.stat().st_atime_ns, file.stat().st_mtime_ns
    save_file({name: tensor + 1 for name, tensor in load_file(file).items()}, file)
    os.utime(file, ns=times)  # as a copy that keeps the times
    second = module_hash(_read(weights))
    assert second != first and len(hashed) == 4
    assert module_hash(_read(weights)) == second and len(hashed) == 4


def test_a_file_is_read_once_while_it_stays_the_same(plain: Path, hashed: list, monkeypatch) -> None:
    file = plain / "model.safetensors"
    assert seen_hash(file) == seen_hash(file) and hashed == [file]
    file.write_bytes(LARGE[::-1])
    changed = seen_hash(file)
    assert hashed == [file, file] and changed == hashing.file_hash(file)
    (kept,) = (path for path in (plain.parent / "cache/langdc/hashes").iterdir() if path.read_text() == changed)
    kept.write_text("")  # as a power cut may leave it
    assert seen_hash(file) == changed and kept.read_text() == changed
    hashed.clear()
    monkeypatch.setattr(hashing, "_SETTLED_SECONDS", 1000)  # it may be written again within the same tick of the clock
    assert seen_hash(file) == seen_hash(file) == changed and len(hashed) == 2


def test_old_hashes_go_when_another_one_is_written(plain: Path, hashed: list) -> None:
    file, kept = plain / "model.safetensors", plain.parent / "cache/langdc/hashes"
    seen_hash(file)
    (first,) = kept.iterdir()
    (kept / "12345678.partial").touch()  # of a process that was killed
    for path in kept.iterdir():
        os.utime(path, (0, path.stat().st_mtime - hashing._KEPT_SECONDS - 5))
    assert seen_hash(file) and len(hashed) == 1, "an old one is still read"
    file.write_bytes(LARGE[::-1])
    seen_hash(file)
    (second,) = kept.iterdir()
    assert second != first and len(hashed) == 2
