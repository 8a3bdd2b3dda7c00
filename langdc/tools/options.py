"""Options that `langdc ask`, `langdc compare`, `langdc demo` and `langdc embed` share."""

import argparse
import inspect
from pathlib import Path
from typing import Any

from langdc import compat
from langdc.configfiles import parse_yaml
from langdc.frameselectors import frameselectors


def add_method(parser: argparse.ArgumentParser) -> None:
    """The budget, and all of `add_reading`."""
    parser.add_argument("--keep", type=float, help="fraction of the visual tokens that is kept, such as 0.25")
    parser.add_argument("--tokens", type=int, help="number of visual tokens that are kept, in place of --keep")
    parser.add_argument("--host", type=_old_host, dest="backbone", help=argparse.SUPPRESS)
    add_reading(parser)


def add_reading(parser: argparse.ArgumentParser) -> None:
    """The backbone of a stock model, the frames that it reads, where it runs, and how much it writes."""
    parser.add_argument("--backbone", help="for stock models: a backbone by name, such as llava_video")
    parser.add_argument("--frames", type=int, help="for stock models: the number of frames of a video")
    said = "a frame selector: its name, or {name: ..., settings}"
    parser.add_argument("--select", metavar="NAME", help=f"{said}, which chooses the frames for the question")
    add_device(parser)
    parser.add_argument("--max-new-tokens", type=int, default=64, help="length limit of a reply (default: 64)")


def add_device(parser: argparse.ArgumentParser) -> None:
    """Where a model runs, and in which type. The defaults are None, so that a config file's settings stay."""
    auto = "auto (default: the accelerator if there is one)"
    parser.add_argument("--device", help=f"where the model runs: {auto}, cpu, cuda, cuda:1, npu, ...")
    auto = "auto (default: bfloat16 on an accelerator, as the checkpoint says on a CPU)"
    parser.add_argument("--dtype", help=f"type of the weights: {auto}, float32, bfloat16, float16")


def add_outside(parser: argparse.ArgumentParser) -> None:
    """Whether media may be elsewhere than their records."""
    parser.add_argument("--allow-outside", action="store_true", help="read media outside the folder of their records")


def add_quarantine(parser: argparse.ArgumentParser) -> None:
    """Records that a training leaves out."""
    said = "records to leave out, as langdc data check lists them"
    parser.add_argument("--quarantine", metavar="FILE", type="train.quarantine={}".format, help=said)


def place(options: argparse.Namespace) -> dict[str, Any]:
    """The device and the type that were given, as keywords of `VideoLM.from_pretrained`."""
    return _given(device=options.device, dtype=options.dtype)


def _old_host(name: str) -> str:
    """`--host` of version 0.1 sets `--backbone`."""
    compat.warn_once("--host", "--backbone")
    return name


def budget(options: argparse.Namespace) -> dict[str, Any]:
    """The budget that was given, as keywords of a compressor."""
    return _given(keep=options.keep, tokens=options.tokens)


def backbone(options: argparse.Namespace) -> dict[str, Any]:
    """The settings of a stock model's backbone that were given."""
    return _given(name=options.backbone, frames=options.frames)


def selector(options: argparse.Namespace) -> dict[str, Any]:
    """The frame selector that was given, as a keyword of `VideoLM.from_pretrained`."""
    if options.select is None:
        return {}
    found = parse_yaml(options.select, "--select")
    if not isinstance(found, str | dict):
        raise ValueError(f"--select {options.select}: give a name, or {{name: ..., settings}}. See: docs/videos.md")
    given = {"name": found} if isinstance(found, str) else found
    if "name" in given and "scorer" not in given:
        needed = inspect.signature(frameselectors.get(given["name"])).parameters.get("scorer")
        if needed is not None and needed.default is needed.empty:
            name = given["name"]
            raise ValueError(
                f"The frameselector {name!r} needs the setting scorer: for example --select "
                f"'{{name: {name}, scorer: {{model: FOLDER}}}}'; see docs/videos.md."
            )
    return {"frames": found}


def _given(**settings: Any) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if value is not None}


def check_asked(video: str | Path | None, question: str, max_new_tokens: int) -> None:
    """ValueError, before a model is loaded, for a question in another encoding than UTF-8, a reply of no length, or a
    folder of frames, whose rate no option says.
    """
    try:
        question.encode()
    except UnicodeEncodeError:
        raise ValueError(f"The question {question!r} is not valid UTF-8. Set the terminal to UTF-8.") from None
    if max_new_tokens < 1:
        raise ValueError(f"`max_new_tokens` must be greater than 0, but is {max_new_tokens}.")
    if video is not None and Path(video).is_dir():
        raise ValueError(
            f"{video} is a folder; langdc ask, compare and embed take a file. In Python: lm.open(folder, fps=...)."
        )
