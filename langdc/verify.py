"""After a save: a fresh process loads what was written, and finds the very tensors and logits that were in memory.

expected = fingerprint(model)          # before or right after saving
verify_saved(directory, expected)      # ValueError names what differs
"""

import atexit
import gc
import json
import os
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn

from langdc import checkpoint
from langdc.backbones.chat import conversation
from langdc.distributed import without_launcher
from langdc.encoders.video import VideoEncoder
from langdc.hashing import tensor_hash
from langdc.interfaces import CaptionCompressor
from langdc.language_models import load_language_model
from langdc.model import VideoModel
from langdc.types import Frames, VideoFeatures, VideoTokens

QUESTION = "what happens in the video ?"
FRAME_SIDE = 32
SHOWN = 8
EXACT, ROUNDED = 1e-3, 5e-2
"""Largest difference of logits, as a share of the largest: between float32 on one machine, and of shorter types."""
LAST = 12
"""Lines of what a process said that are told when it failed."""
START = "import gc, os; gc.disable(); os.nice(5); from langdc.verify import serve; serve()"
"""Imports give way to the run they go on beside; a fifth of their time would be spent looking for garbage."""


@dataclass(frozen=True)
class Fingerprint:
    """Every tensor of a model by name, as its type and the sha256 of its values, and the logits of one fixed input.

    `untrained`: names of tensors that loading leaves random and that nothing reads (see `VideoModel`). `packed`: names
    of those in 4 bits, whose values no other process has.
    """

    tensors: dict[str, list[str]]
    logits: list[float]
    untrained: list[str] = field(default_factory=list)
    packed: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Verified:
    """What the fresh process found equal: how many tensors, and the largest difference of a logit."""

    tensors: int
    difference: float


def fingerprint(model: nn.Module, logits: bool = True, known: Mapping[int, list[str]] | None = None) -> Fingerprint:
    """The fingerprint of a model in memory; without logits, those are not compared (an empty list).

    `known`: type and sha256 of parameters that are not in this process's memory now, by their id.
    """
    named = dict(model.named_parameters(remove_duplicate=False))
    packed = sorted(name for name, tensor in named.items() if not tensor.is_floating_point())
    tensors = {
        name: (known or {}).get(id(tensor)) or typed_hash(tensor)
        for name, tensor in named.items()
        if name not in packed
    }
    untrained = sorted(model.untrained) if isinstance(model, VideoModel) else []
    return Fingerprint(tensors, probe(model).tolist() if logits else [], untrained, packed)


def typed_hash(tensor: Tensor) -> list[str]:
    """A tensor's type, and the hash of its values as float32, which loading may turn them into."""
    return [str(tensor.dtype).removeprefix("torch."), tensor_hash(tensor, torch.float32)]


def open_saved(directory: Path) -> nn.Module:
    """Load whatever a save can have written: a checkpoint, an adapter, a language model, or an InternVideo2."""
    if (directory / checkpoint.CARD).is_file():
        return checkpoint.load(directory, plain=True)
    if (directory / "adapter_config.json").is_file():
        import peft  # takes seconds, and few saves are adapters

        return peft.AutoPeftModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    if "model_type" in json.loads((directory / "config.json").read_text()):
        return load_language_model(str(directory)).eval()
    return VideoEncoder(str(directory)).eval()


@torch.no_grad()
def probe(model: nn.Module) -> Tensor:
    """What a model makes of one fixed input, as one vector of float32: logits of the next token, or features."""
    training = model.training
    model.eval()
    with _unrounded():
        if isinstance(model, VideoModel):
            found = _answer_logits(model)
        elif isinstance(model, VideoEncoder):
            found = model([_noise(model.model.config.frames)])[0].values.mean((0, 1, 2))
        else:
            ids = torch.arange(8, device=next(model.parameters()).device)[None]
            found = model(input_ids=ids).logits[0, -1]
    model.train(training)
    return found.float().cpu()


@contextmanager
def _unrounded() -> Iterator[None]:
    """Let an accelerator compute float32 as a CPU does, not with the 10 bits of TF32."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.backends.cudnn.flags(enabled=torch.backends.cudnn.enabled, allow_tf32=False):
            yield
    finally:
        torch.set_float32_matmul_precision(before)


def _noise(frames: int) -> Frames:
    dice = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (frames, 3, FRAME_SIDE, FRAME_SIDE), dtype=torch.uint8, generator=dice)
    return Frames(pixels, torch.arange(frames) / 2)


def _answer_logits(model: VideoModel) -> Tensor:
    """Logits after a fixed question about fixed noise, read through every part that answers: [vocabulary].

    A captioner is given a caption, since a written one could flip at a tie.
    """
    backbone = model.backbone
    # one segment goes through all parts that read captions; encoders at full size take seconds for each
    segments = 1 if isinstance(model.compressor, CaptionCompressor) else backbone.segments
    video = backbone.features_of([_noise(segments * backbone.frames_per_segment)], model.compressor.needs)[0]
    tokens = backbone.append_newline_tokens(_compressed(model, video), video)
    prompt = backbone.prompt(conversation(QUESTION), media=[video])
    spliced = backbone.splice([prompt], [[tokens]])[0]
    positions = torch.arange(len(spliced.embeds), device=spliced.embeds.device)[None]
    found = backbone.text_model(inputs_embeds=spliced.embeds[None], position_ids=positions, use_cache=False)
    return backbone.lm_head(found.last_hidden_state[:, -1])[0]


def _compressed(model: VideoModel, video: VideoFeatures) -> VideoTokens:
    compressor = model.compressor
    if not isinstance(compressor, CaptionCompressor):
        return compressor.batch([video])[0]
    states = compressor.supervised([video], [[torch.arange(4, device=model.device)]]).states
    return compressor.project([video], states)[0]


def differences(expected: Fingerprint, found: Fingerprint) -> list[str]:
    """One line for each tensor that is missing, new or of other values, and one for logits that differ.

    Tensors that loading marks as untrained are left out: no save holds them, and nothing may read them. So are packed
    ones, of which a save holds where they come from.
    """
    names = sorted((expected.tensors.keys() | found.tensors.keys()) - {*found.untrained, *expected.packed})
    kinds = {
        name: "is missing" if name not in found.tensors else "was not saved" if name not in expected.tensors else ""
        for name in names
    }
    lines = [f"{name} {kind}" for name, kind in kinds.items() if kind]
    lines += [
        f"{name} has other values"
        for name, kind in kinds.items()
        if not kind and expected.tensors[name][1] != found.tensors[name][1]
    ]
    apart, allowed = logit_difference(expected, found), _allowed(expected)
    return lines + (
        [f"logits differ by {apart:.2e} of the largest, more than {allowed}"] if not apart <= allowed else []
    )


def logit_difference(expected: Fingerprint, found: Fingerprint) -> float:
    """The largest difference of a logit as a share of the largest logit; infinite where they are not comparable."""
    if not expected.logits:
        return 0.0
    if len(expected.logits) != len(found.logits):
        return float("inf")
    before, after = torch.tensor(expected.logits), torch.tensor(found.logits)
    return float((before - after).abs().max() / before.abs().max().clamp(min=1e-6))


def _allowed(expected: Fingerprint) -> float:
    return EXACT if {kind for kind, _ in expected.tensors.values()} == {"float32"} else ROUNDED


def verify_converted(directory: Path, hashes: Mapping[str, str]) -> Verified:
    """As `verify_saved`, of weights that never were a model in memory: `hashes` are of the tensors it was made of."""
    model = open_saved(directory)
    untrained = sorted(model.untrained) if isinstance(model, VideoModel) else []
    logits = probe(model).tolist()
    del model
    return verify_saved(directory, Fingerprint({n: ["float32", h] for n, h in hashes.items()}, logits, untrained))


def verify_saved(directory: Path, expected: Fingerprint) -> Verified:
    """Load a saved directory in a fresh process and compare; ValueError names everything that differs."""
    with tempfile.TemporaryDirectory() as place:
        wanted, answer = Path(place, "expected.json"), Path(place, "found.json")
        wanted.write_text(json.dumps(asdict(expected)))
        failure = _reader(os.getpid()).read(directory, wanted, answer)
        if failure is not None:
            raise ValueError(f"{directory} was saved, but a fresh process cannot load it:\n  {failure}")
        found = Fingerprint(**json.loads(answer.read_text()))
    lines = differences(expected, found)
    if lines:
        more = f"\n  and {len(lines) - SHOWN} more" if len(lines) > SHOWN else ""
        raise ValueError(
            f"{directory} was saved, but what a fresh process loads from it differs in {len(lines)} ways; do not use "
            "it:\n  " + "\n  ".join(lines[:SHOWN]) + more
        )
    compared = found.tensors.keys() - {*found.untrained, *expected.packed}
    return Verified(len(compared), logit_difference(expected, found))


def prepare() -> None:
    """Start the process that later loads what is saved: importing takes it seconds, which pass beside other work."""
    _reader(os.getpid())


class _Reader:
    """A process that has imported this module and nothing else; a fork of it, as fresh, loads each save.

    It is no rank of a run, sees no accelerator, which the run may fill, and ends with the process that started it.
    """

    def __init__(self) -> None:
        inherited = without_launcher(os.environ)
        self._owner = os.getpid()
        self._said = tempfile.TemporaryFile("w+")  # noqa: SIM115 - open as long as the process runs
        self._process = subprocess.Popen(
            [sys.executable, "-c", START],
            env={**inherited, "CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            text=True,
            start_new_session=True,  # Ctrl-C is for the run, which then lets go of this
        )
        atexit.register(self._close)

    @property
    def alive(self) -> bool:
        """Whether it can be asked."""
        return self._process.poll() is None

    def read(self, *words: Path) -> str | None:
        """Call `main` in a fork; None if that went well, else the last lines it said."""
        assert self._process.stdin is not None and self._process.stdout is not None  # pipes, as asked for
        try:
            self._process.stdin.write(json.dumps([str(Path.cwd()), *map(str, words)]) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # it ended while importing; then there is no status to read either
        status = self._process.stdout.readline().strip()
        self._said.seek(0)
        said = self._said.read().strip().splitlines()
        self._said.seek(0)
        self._said.truncate()
        if status == "0":
            return None
        ended = [f"It was ended by signal {status[1:]}; 9 means out of memory."] if status.startswith("-") else []
        return "\n  ".join([*said[-LAST:], *ended])

    def _close(self) -> None:
        if self._owner == os.getpid() and self._process.stdin is not None:
            self._process.stdin.close()
            self._process.wait()


@cache
def _started(process: int, number: int) -> _Reader:
    return _Reader()


def _reader(process: int) -> _Reader:
    """The reader of a process, which a fork of it must not share; another one where it has ended."""
    number = 0
    while not _started(process, number).alive:
        number += 1
    return _started(process, number)


def serve() -> None:
    """What the reader does: a line of JSON in, the directory to work in and the words of `main`; a status out."""
    gc.enable()
    gc.freeze()
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what a library prints is no answer
    for line in sys.stdin:
        place, *words = json.loads(line)
        child = os.fork()
        if child == 0:
            os.chdir(place)
            os._exit(_guarded(words))
        answers.write(f"{os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])}\n")


def _guarded(words: list[str]) -> int:
    try:
        return main(words)
    except BaseException:
        traceback.print_exc()
        return 1
    finally:
        sys.stderr.flush()


def main(words: list[str]) -> int:
    """Load a directory; a file of the expected fingerprint says how, the found one is written to another file."""
    directory, wanted, answer = map(Path, words)
    expected = Fingerprint(**json.loads(wanted.read_text()))
    model = open_saved(directory)
    _round_as(model, expected.tensors)
    found = fingerprint(model, logits=bool(expected.logits))
    answer.write_text(json.dumps(asdict(found)))
    return 0


def _round_as(model: nn.Module, tensors: Mapping[str, list[str]]) -> None:
    """Give every parameter the values that it had in a run of a shorter type."""
    with torch.no_grad():
        for name, parameter in model.named_parameters(remove_duplicate=False):
            if name in tensors:
                parameter.copy_(parameter.to(getattr(torch, tensors[name][0])))
