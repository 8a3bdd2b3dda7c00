"""Model folders that others wrote: which files are read, and a clear error for what is damaged or does not fit."""

import pickle
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from zipfile import BadZipFile, ZipFile, is_zipfile

import torch
import transformers
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoConfig, PretrainedConfig

from langdc.jsonl import read_json

TEXT_FILES = ("*.json", "*.txt", "*.model", "*.jinja")
_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
_PARALLEL = "module."  # before every name after training on several devices
_LFS_POINTER = b"version https://git-lfs"
_SHOWN = 16
"""How many names an error holds; of more, those of all layers count as one."""
_DEPTH = re.compile(r"(num_(hidden_)?|n_)layers?|depth|(en|de)coder_layers")
_SETTINGS = re.compile(r".*config\.json|.*\.index\.json|chat_template\.json")
"""Files whose content is an object of settings."""
_QUANTIZED = {"quantization_config", "compression_config"}
_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")


def read_settings(file: Path, purpose: str = "to know what this is") -> dict[str, Any]:
    """The object in a JSON file; ValueError with its name if it is absent, damaged, or holds another kind of value.

    `purpose` ends the sentence "... is needed".
    """
    if not file.is_file():
        raise ValueError(f"There is no {file}, which is needed {purpose}. Give the whole published directory.")
    settings = read_json(file)
    if not isinstance(settings, dict):
        raise ValueError(f"{file} holds a {type(settings).__name__}, not an object of settings. Copy it again.")
    return settings


@contextmanager
def reading(where: Path | str, what: str) -> Iterator[None]:
    """Turn whatever a library raises on files or settings (`where`) into a ValueError that names them.

    `what` should have been made of them. Errors of the operating system and of device memory stay as they are.
    """
    try:
        yield
    except Exception as error:
        if getattr(error, "errno", None) is not None or isinstance(error, torch.OutOfMemoryError):
            raise
        reason = " ".join(str(error).split())[:300]
        raise ValueError(
            f"{where}: transformers {transformers.__version__} cannot make {what} of it ({type(error).__name__}: "
            f"{reason}). Copy the published files again, all of them; a model may also be too new or too old for it."
        ) from error


def read_config(folder: Path, what: str = "the model") -> PretrainedConfig:
    """The config.json of a folder; ValueError if it is damaged, of an unknown model, or states too many layers."""
    file = folder / "config.json"
    read_settings(file, f"to know the sizes of {what}")
    with reading(file, f"the settings of {what}"):
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    check_depth(config.to_dict(), count_tensors(folder), file)
    return config


def check_depth(settings: Any, tensors: int, where: Path | str) -> None:
    """ValueError if settings state more layers than there are tensors: building the model could take forever."""
    for key, value in settings.items() if tensors and isinstance(settings, Mapping) else ():
        if isinstance(value, int) and value > tensors and _DEPTH.fullmatch(str(key)):
            raise ValueError(f"{where}: {key} is {value}, but there are {tensors} tensors in all. Copy it again.")
        check_depth(value, tensors, where)


def count_tensors(folder: Path) -> int:
    """The number of tensors in a folder's weights; 0 if it has none."""
    return sum(len(read_tensors(file) if file.suffix == ".bin" else _names(file)) for file in weight_files(folder))


def _names(file: Path) -> list[str]:
    """The names of the tensors in a safetensors file; ValueError unless it is as long as its header says."""
    try:
        with safe_open(file, "np") as opened:
            return list(opened.keys())
    except SafetensorError as error:
        raise ValueError(f"{file} is no whole safetensors file ({error}). Copy it again.") from None


def check_files(folder: Path, weights: bool = False) -> None:
    """ValueError for the first damaged file: JSON, safetensors, git-lfs pointers, links that lead nowhere.

    With `weights` also if the folder holds none, not all that an index lists, or an adapter.
    """
    for file in sorted({file for pattern in (*TEXT_FILES, "*.safetensors", "*.bin") for file in folder.glob(pattern)}):
        _check_file(file)
        if file.suffix == ".json":
            (read_settings if _SETTINGS.fullmatch(file.name) else read_json)(file)
        elif file.suffix == ".safetensors":
            _names(file)
    if weights:
        _check_weights(folder)


def _check_file(file: Path) -> None:
    """ValueError for a link that leads nowhere, and for a git-lfs pointer."""
    if file.is_symlink() and not file.exists():
        raise ValueError(f"{file} is a link to {file.readlink()}, which is not there. Copy what it stands for: cp -L.")
    with file.open("rb") as opened:
        if opened.read(len(_LFS_POINTER)) == _LFS_POINTER:
            raise ValueError(f"{file} is a git-lfs pointer, not the file itself. Fetch it with: git lfs pull")


def weight_files(folder: Path) -> list[Path]:
    """The files that transformers takes a folder's weights from: safetensors, else the older .bin; [] if none.

    ValueError if an index lists files that are not there.
    """
    for name in _WEIGHTS:
        index = folder / f"{name}.index.json"
        if (folder / name).is_file():
            return [folder / name]
        if index.is_file():
            listed = read_settings(index).get("weight_map")
            names = list(listed.values()) if isinstance(listed, dict) else []
            if not names or any(not isinstance(name, str) or Path(name).name != name for name in names):
                raise ValueError(f"{index} holds no weight_map from tensors to files beside it. Copy it again.")
            if lacking := sorted({name for name in names if not (folder / name).is_file()}):
                raise ValueError(
                    f"{folder} lacks {', '.join(lacking)}, which {index.name} lists. Copy the folder again."
                )
            return [folder / name for name in sorted(set(names))]
    return []


def _check_weights(folder: Path) -> None:
    whole, adapter = weight_files(folder), folder / "adapter_config.json"
    if adapter.is_file():
        base = read_settings(adapter).get("base_model_name_or_path")
        raise ValueError(
            f"{folder} holds an adapter {'beside whole weights' if whole else 'alone'}. Merge it into the model that "
            f"it was trained on ({base or 'its base is not named'}) with PEFT (PeftModel.from_pretrained, "
            "merge_and_unload, save_pretrained), and give the merged folder"
            f"{', or take adapter_config.json away' if whole else ''}."
        )
    if not whole:
        raise ValueError(
            f"{folder} holds no weights: neither {' nor '.join(_WEIGHTS)}, nor their index with shards. Copy the whole "
            "folder; of a Hugging Face id only safetensors are fetched here (all of it: hf download ID)."
        )
    config = folder / "config.json"
    stated = sorted(_QUANTIZED & read_settings(config).keys()) if config.is_file() else []
    if found := stated or [name for file in whole for name in _quantized(file)]:
        raise ValueError(
            f"{folder} holds quantised weights that this loader does not know ({found[0]}; {len(found)} in all). Give "
            "the published weights in bfloat16, float16 or float32."
        )


def _quantized(file: Path) -> list[str]:
    """The tensors of a file that are of no use without a scale: integers fp8, fp4, and the scales."""
    if file.suffix == ".bin":
        kinds = {name: str(tensor.dtype).removeprefix("torch.") for name, tensor in read_tensors(file).items()}
    else:
        with safe_open(file, "np") as opened:
            kinds = {name: opened.get_slice(name).get_dtype() for name in opened.keys()}  # noqa: SIM118
    return [
        name
        for name, kind in kinds.items()
        if name.endswith(("_scale_inv", "weight_scale"))
        or (
            re.match(r"q?u?int|float[48]|[IU]\d|F[468](_|$)", kind)
            and (name.endswith("weight") or not kind.endswith(("32", "64")))  # else an index, such as position_ids
        )
    ]


def read_tensors(file: Path) -> dict[str, Tensor]:
    """All tensors of a .safetensors, .bin or .pt file, on the CPU; those of a training state are taken out of it.

    Pickles are read with `weights_only`. ValueError for code, for other things than tensors, for files cut off, and for
    tensors that state more values than the file holds.
    """
    if not file.is_file():
        raise ValueError(f"There is no file of weights {file}. Give a local file (nothing is downloaded).")
    _check_file(file)
    if file.suffix == ".safetensors":
        _names(file)
        content: Any = load_file(file)
    else:
        content = _unpickle(file)
    for key in ("module", "model", "state_dict"):  # DeepSpeed's and plain training states keep the weights under these
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
            break
    if not isinstance(content, dict) or not content:
        raise ValueError(f"{file} holds a {type(content).__name__}; a mapping from names to tensors is needed.")
    not_tensors = [
        str(name) for name, value in content.items() if not (isinstance(name, str) and isinstance(value, Tensor))
    ]
    if not_tensors:
        raise ValueError(f"{file} holds more than tensors: {', '.join(not_tensors[:8])}. Save the weights alone.")
    if hollow := {name: tuple(tensor.shape) for name, tensor in content.items() if not _is_filled(tensor)}:
        name, shape = next(iter(hollow.items()))
        raise ValueError(
            f"{file} states more values than it holds: {len(hollow)} tensors, such as {name} of shape {shape}. Copy it "
            "again, or save it with contiguous tensors."
        )
    if all(name.startswith(_PARALLEL) for name in content):
        return {name.removeprefix(_PARALLEL): tensor for name, tensor in content.items()}
    return content


def _unpickle(file: Path) -> Any:
    try:
        zipped = is_zipfile(file)
        if zipped and any(entry.compress_type for entry in ZipFile(file).infolist()):
            raise ValueError("its tensors are compressed, which torch does not do")
        return torch.load(file, map_location="cpu", weights_only=True, mmap=zipped)
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL ([\w.]+)", str(error))  # the rest is torch's advice to let the code run
        raise ValueError(
            f"{file} is no plain file of tensors: it is cut off, or holds objects whose code would run on loading"
            f"{f', such as {named[1]}' if named else ''}. Copy it again, or get it as safetensors."
        ) from None
    except (RuntimeError, EOFError, OSError, BadZipFile, ValueError, LookupError, TypeError) as error:
        reason = "a layout that only running code can read" if "weights_only" in str(error) else str(error) or "cut off"
        raise ValueError(f"{file} is no whole file of weights ({reason}). Copy it again.") from None


def _is_filled(tensor: Tensor) -> bool:
    """Whether all values that a tensor's shape states are there."""
    if tensor.layout != torch.strided or tensor.device.type != "cpu" or (not tensor.numel() and any(tensor.shape)):
        return False
    return tensor.nbytes <= tensor.untyped_storage().nbytes()


def refuse_tensors(what: str, problems: Mapping[str, list[str]], advice: str) -> None:
    """ValueError that names tensors by kind of problem ("missing", "unknown", ...), if there are any."""
    if lines := [f"{len(names)} {kind}: {'; '.join(_joined(names))}" for kind, names in problems.items() if names]:
        raise ValueError(f"The tensors do not make up {what}: {'. '.join(lines)}. {advice}")


def check_complete(
    what: str,
    tensors: Mapping[str, Any],
    expected: Mapping[str, tuple[int, ...]],
    unknown: Iterable[str] = (),
    advice: str = "Copy the published files again, all of them.",
    published: Mapping[str, str] = {},
) -> None:
    """ValueError unless the tensors are exactly those expected, shapes included, so that no weight stays random.

    `tensors`: by name, anything with a `shape`; `published`: names that messages use in place of these.
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    problems = {
        "missing": sorted(expected.keys() - shapes.keys()),
        "unknown": sorted({*unknown, *(published.get(name, name) for name in shapes.keys() - expected.keys())}),
        "of another shape": [
            f"{published.get(name, name)}: {shapes[name]}, not {expected[name]}"
            for name in sorted(shapes.keys() & expected.keys())
            if shapes[name] != expected[name]
        ],
    }
    refuse_tensors(what, problems, advice)


def _joined(names: list[str]) -> list[str]:
    """The names; if there are many, those that differ in one number are joined: layers.{0,1}.norm.weight."""
    if len(names) <= _SHOWN:
        return names
    numbers: dict[str, list[str]] = {}
    for name in names:
        number = _NUMBER.search(name)
        numbers.setdefault(_NUMBER.sub("{}", name, count=1), []).append(number[0] if number else "")
    joined = [
        key.replace("{}", parts[0] if len(parts) == 1 else f"{{{','.join(parts)}}}", 1)
        for key, parts in numbers.items()
    ]
    return joined if len(joined) <= _SHOWN else [*joined[:_SHOWN], f"and {len(joined) - _SHOWN} more kinds"]
