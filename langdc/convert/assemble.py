"""A release of VideoGPT+ or LangDC as one checkpoint of this project, with all its parts inside it.

Parts are looked for where the release's own files say, around it; options name those that are elsewhere. Weights pass
through float16 and the adapter is merged, as in the authors' loader. conversion.json lists every tensor.
"""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from langdc import checkpoint
from langdc.captioner import SoftToken
from langdc.config import ModelConfig, check
from langdc.convert import files, images, internvideo2, language, release
from langdc.convert.commands import add_verify_option, check_saved, open_output, write_report
from langdc.convert.names import SHOWN, NameReport, shapes_of
from langdc.devices import TYPES
from langdc.encoders.internvideo2 import InternVideo2Config
from langdc.hashing import tensor_hash
from langdc.log import screen
from langdc.modelfiles import check_complete, read_config, read_settings, weight_files
from langdc.projectors import build_projector

Branch = Literal["cap", "pool", "dual"]
_LANGUAGE, _CAPTIONER, _IMAGE, _VIDEO = "language_model", "captioner", "image_encoder", "video_encoder"
_SYSTEM = "You are a helpful AI assistant."
_CAPTION_PROMPT = (
    f"<|im_start|>system\n{_SYSTEM}<|im_end|><|im_start|>user\n{{video}}\nPlease provide a brief description of the "
    "video, focusing on the main subjects, their actions, the background scenes.\n<|im_end|><|im_start|>assistant\n"
)
_STREAMS = {"image": "image_mm_projector", "video": "mm_projector"}
_SEEN, _POOLED = [12, 8], [6, 4]
"""Grid sides per stream: of VideoGPT+'s tokens and of the captioner's input, and of LangDC's pooled tokens."""
_DUAL_LAYER = 0
"""The released dual form reads the embeddings of captions, whatever layer its settings name."""
_MAX_SOFT_TOKENS = {"cap": 128, "dual": 256}
_FAMILIES = {"langdc": ("VideoQwenVQA", "qwen2"), "videogpt_plus": ("VideoGPT+", "phi3")}
"""Model type of the release and type of its language model."""


@dataclass(frozen=True)
class Options:
    """Paths of parts that the release does not name, and settings that its files do not state. None: as released."""

    language: Path | None = None
    captioner: Path | None = None
    image_encoder: Path | None = None
    video_encoder: Path | None = None
    projectors: Path | None = None
    heads: int | None = None
    branch: Branch | None = None
    layer: int | None = None
    soft_token: SoftToken = "released"
    max_soft_tokens: int | None = None
    dtype: torch.dtype = torch.float16


@dataclass
class _Converted:
    """What was written so far: the report, and `hashes` of every tensor that loading must give, by its name there."""

    folder: Path
    report: NameReport = field(default_factory=NameReport)
    hashes: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def expect(self, prefix: str, tensors: Mapping[str, Tensor]) -> None:
        self.hashes |= {f"{prefix}{name}": tensor_hash(tensor, torch.float32) for name, tensor in tensors.items()}


def main_langdc(argv: Sequence[str] | None = None) -> int:
    """Convert LangDC's release as the arguments say; 0 when the checkpoint is written."""
    parser = _parser("langdc")
    parser.add_argument("--captioner", type=Path, help="directory of the captioner (cap_light_llm)")
    branch = "captions, pooled tokens, or both; default: as released"
    parser.add_argument("--branch", choices=get_args(Branch), help=branch)
    parser.add_argument("--layer", type=int, help="hidden state that is a soft token; default: as released")
    soft = "which position's state stands for a caption token; the released weights need 'released'"
    parser.add_argument("--soft-token", choices=("released", "at", "predicting"), default="released", help=soft)
    parser.add_argument("--max-soft-tokens", type=int, help="per segment; default: 128, or 256 of both branches")
    return _run("langdc", parser.parse_args(argv))


def main_videogpt_plus(argv: Sequence[str] | None = None) -> int:
    """Convert VideoGPT+'s release as the arguments say; 0 when the checkpoint is written."""
    return _run("videogpt_plus", _parser("videogpt_plus").parse_args(argv))


def _parser(family: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=f"langdc convert {family}", description=__doc__)
    parser.add_argument("release", type=Path, help="directory of the release")
    parser.add_argument("out", type=Path, help="directory to make")
    parser.add_argument("--language", type=Path, help="directory of the language model, with its tokenizer")
    parser.add_argument("--image-encoder", type=Path, help="directory of the CLIP")
    parser.add_argument("--video-encoder", type=Path, help="InternVideo2's .pt file, or the directory made of it")
    parser.add_argument("--projectors", type=Path, help="file of projectors that the release itself does not hold")
    parser.add_argument("--heads", type=int, help="the video encoder's heads, where its width is of no published size")
    parser.add_argument("--dtype", choices=TYPES, default="float16", help="type that all weights pass through")
    add_verify_option(parser)
    return parser


def _run(family: str, arguments: argparse.Namespace) -> int:
    given = {name: value for name, value in vars(arguments).items() if name in Options.__dataclass_fields__}
    done = convert(family, arguments.release, arguments.out, Options(**{**given, "dtype": TYPES[arguments.dtype]}))
    console = screen()
    console.print(*done.report.lines(), *done.notes, sep="\n")
    if not arguments.no_verify_save:
        console.print(check_saved(arguments.out, done.hashes))
    return 0


def convert(family: str, source: Path, out: Path, options: Options) -> _Converted:
    """Write the checkpoint `out`, whole or not at all.

    ValueError names every tensor that is missing, unknown or misshapen, and every part that was not found.
    """
    with open_output(out) as beside:
        found = release.open_release(source, _FAMILIES[family][0])
        if found.settings.get("mm_use_im_start_end"):
            raise ValueError(
                f"{found.folder} has mm_use_im_start_end, marks around videos that no backbone here writes."
            )
        done = _Converted(beside)
        _write(family, found, options, done)
        write_report(beside, done.report)
    return done


def _write(family: str, found: release.Release, options: Options, done: _Converted) -> None:
    branch = _branch(family, found.settings, options)
    text_source, tokenizer_source, width = _language(family, found, options, done)
    video = _video_encoder(found, options, done)
    widths = {"image": _image_encoder(found, options, done), "video": video.width, "backbone": width}
    projectors = {} if options.projectors is None else release.projectors_of(options.projectors)
    backbone = _backbone(family, found.settings, done, video)
    compressor: dict[str, Any] = {"name": "pool", "sides": _POOLED if family == "langdc" else _SEEN}
    if family == "langdc" and branch != "pool":
        captioner, widths["captioner"] = _captioner(found, options, done, tokenizer_source)
        if (captioner / release.PROJECTORS).is_file():
            projectors |= release.projectors_of(captioner / release.PROJECTORS)
        compressor = _compressor(found.settings, options, done, branch)
    projectors |= found.parts["projectors"]
    tensors = _projectors(projectors, backbone, compressor, widths, branch, options.dtype, done)
    done.expect("", tensors)
    model = check(ModelConfig, {"backbone": backbone, "compressor": compressor}, str(found.folder))
    info = {"converted_from": f"{found.settings['model_type']} {found.folder.name}", "base": text_source.name}
    checkpoint.save(model, done.folder, tensors=tensors, info=info)


def _branch(family: str, settings: Mapping[str, Any], options: Options) -> Branch:
    if options.branch is not None:
        return options.branch
    if family == "videogpt_plus":
        return "pool"
    stated = bool(settings.get("is_cap_branch")), bool(settings.get("is_pool_branch"))
    if not any(stated):
        allowed = ", ".join(get_args(Branch))
        raise ValueError(
            f"config.json names neither branch (is_cap_branch, is_pool_branch); say it: --branch {allowed}."
        )
    return "dual" if all(stated) else "cap" if stated[0] else "pool"


# ---- the parts, each as a directory of its own


def _language(family: str, found: release.Release, options: Options, done: _Converted) -> tuple[Path, Path, int]:
    """Write the language model: where its settings and its tokenizer come from, and its width."""
    settings_of = found.folder
    text_type = _FAMILIES[family][1]
    if found.adapter is not None:
        stated = read_settings(found.folder / "adapter_config.json", "to know the model below the adapter")
        named = stated.get("base_model_name_or_path")
        settings_of = found.locate(named, options.language, "--language", "The language model")
        config, published = read_config(settings_of, "the language model"), files.read_folder(settings_of)
    else:
        config, published = files.config_within(text_type, found.settings), found.parts["language"]
    tokenizer_of = settings_of if options.language is None else options.language
    # the authors' loader adds this token by default; it has a row, but no part reads it
    added = ["<im_patch>"] if found.settings.get("mm_use_im_patch_token", True) else []
    tokenizer = language.load_tokenizer(tokenizer_of, added, text_type)
    model, report = language.build("the language model", config, published, options.dtype, len(tokenizer))
    done.report.join(report, f"{_LANGUAGE}: ")
    if found.adapter is not None:
        if others := sorted(found.parts["language"]):
            file, names = found.folder / release.EXTRA, ", ".join(others[:SHOWN])
            raise ValueError(f"{file} holds {len(others)} tensors of no part known here: {names}.")
        model, merged = language.merge_adapter(model, found.adapter, options.dtype)
        done.report.join(merged)
    done.expect("backbone.language_model.", model.state_dict())
    language.write(done.folder / _LANGUAGE, model, tokenizer, settings_of, options.dtype)
    return settings_of, tokenizer_of, config.hidden_size


def _image_encoder(found: release.Release, options: Options, done: _Converted) -> int:
    """Write CLIP's directory, from the release's own tensors where it holds them; its width."""
    named = found.settings.get("image_mm_vision_tower")
    source = found.locate(named, options.image_encoder, "--image-encoder", "The image encoder")
    width, tensors, report = images.convert(done.folder / _IMAGE, source, found.parts["image"], options.dtype)
    done.report.join(report, f"{_IMAGE}: ")
    done.expect("backbone.encoders.image.model.", tensors)
    return width


def _video_encoder(found: release.Release, options: Options, done: _Converted) -> InternVideo2Config:
    """Write InternVideo2's directory, from the release's own tensors where it holds them; its sizes."""
    published, heads = found.parts["video"], options.heads
    if not published:
        named = found.settings.get("mm_vision_tower")
        source = found.locate(named, options.video_encoder, "--video-encoder", "The video encoder")
        published, heads = internvideo2.read(source, heads)
    config, tensors, report = internvideo2.convert(published, heads, options.dtype)
    done.report.join(report, f"{_VIDEO}: ")
    files.write_part(done.folder / _VIDEO, tensors, config.model_dump())
    done.expect("backbone.encoders.video.model.", tensors)
    return config


def _captioner(found: release.Release, options: Options, done: _Converted, tokenizer_of: Path) -> tuple[Path, int]:
    """Write the captioner: where its settings come from, and its width."""
    named = found.settings.get("cap_light_llm") or "cap_light_llm"
    source = found.locate(named, options.captioner, "--captioner", "The captioner")
    published = found.parts["captioner"]
    if not published or (found.adapter is not None and weight_files(source)):
        published = files.read_folder(source) | published  # what was trained with the adapter is newer
    config = read_config(source, "the captioner")
    model, report = language.build("the captioner", config, published, options.dtype)
    done.report.join(report, f"{_CAPTIONER}: ")
    done.expect("compressor.captioner.language_model.", model.state_dict())
    # the language model's tokenizer, ending texts as the captioner's generation settings say it ends captions
    tokenizer, file = language.load_tokenizer(tokenizer_of, [], "qwen2"), source / "generation_config.json"
    stated = read_settings(file, "to know where captions end").get("eos_token_id") if file.is_file() else None
    ends = [] if stated is None else stated if isinstance(stated, list) else [stated]
    if ends and tokenizer.eos_token_id not in ends:
        # every id that the tokenizer calls the end would stop a caption, and this one did not stop the authors'
        chosen: Any = tokenizer.pad_token_id if tokenizer.pad_token_id in ends else ends[-1]
        tokenizer.eos_token = tokenizer.convert_ids_to_tokens(chosen)
    language.write(done.folder / _CAPTIONER, model, tokenizer, source, options.dtype)
    return source, model.config.hidden_size


# ---- the checkpoint's own settings and tensors


def _backbone(family: str, settings: Mapping[str, Any], done: _Converted, video: InternVideo2Config) -> dict[str, Any]:
    key = "basepruner_type" if family == "langdc" else "mm_projector_type"
    layer = settings.get("mm_vision_select_layer", -2)
    return {
        "name": "videogpt_plus",
        "language_model": str(done.folder / _LANGUAGE),
        "image_encoder": {"name": "image", "source": str(done.folder / _IMAGE), "layer": layer},
        "video_encoder": {"name": "internvideo2", "source": str(done.folder / _VIDEO)},
        "projector": settings.get(key, "mlp2x_gelu"),
        "segments": 4,
        "frames_per_segment": video.frames,
        "system": _SYSTEM,
    }


def _compressor(settings: Mapping[str, Any], options: Options, done: _Converted, branch: Branch) -> dict[str, Any]:
    kinds = {settings.get("mm_projector_type", "linear"), settings.get("image_mm_projector_type", "linear")}
    if len(kinds) > 1:
        raise ValueError(f"The captioner's projectors are of two kinds ({', '.join(sorted(kinds))}); one is supported.")
    layer = _DUAL_LAYER if branch == "dual" else settings.get("hidden_state_layer", -1)
    return {
        "name": "langdc",
        "captioner": str(done.folder / _CAPTIONER),
        "prompt": _CAPTION_PROMPT,
        "layer": layer if options.layer is None else options.layer,
        "pool": _SEEN,
        "soft_token": options.soft_token,
        "max_soft_tokens": options.max_soft_tokens or _MAX_SOFT_TOKENS[branch],
        "projector": kinds.pop(),
        "post_projector": settings.get("llm_projector_type", "linear"),
        "base": {"name": "pool", "sides": _POOLED} if branch == "dual" else None,
    }


def _projectors(
    published: Mapping[str, Tensor],
    backbone: Mapping[str, Any],
    compressor: Mapping[str, Any],
    widths: Mapping[str, int],
    branch: Branch,
    dtype: torch.dtype,
    done: _Converted,
) -> dict[str, Tensor]:
    """The checkpoint's own tensors; ValueError names those that are missing, unknown or misshapen."""
    streams, kind, width = _STREAMS.items(), backbone["projector"], widths["backbone"]
    needed: dict[str, tuple[Any, ...]] = {
        old: (f"backbone.projectors.{stream}", kind, widths[stream], width) for stream, old in streams
    }
    if branch == "cap" and not any(name.startswith(tuple(f"{old}." for old in needed)) for name in published):
        # the authors' loader draws these at random here, and this form never reads them
        done.notes.append("The backbone's own projectors are not in the release: captions alone can be its tokens.")
        needed = {}
    unread: list[str] = []
    if compressor["name"] == "langdc":
        kind, width = compressor["projector"], widths["captioner"]
        needed |= {f"cap_{old}": (f"compressor.projectors.{s}", kind, widths[s], width) for s, old in streams}
        post = compressor["post_projector"], width, widths["backbone"]
        needed["llm_projector"] = ("compressor.post_projector", *post)
    else:
        unread = [name for name in published if name.startswith(("cap_", "llm_projector"))]
        done.report.dropped |= dict.fromkeys(unread, "this form writes no captions")
    expected = shapes_of(lambda: nn.ModuleDict({old: build_projector(*sizes) for old, (_, *sizes) in needed.items()}))
    kept = {name: tensor for name, tensor in published.items() if name not in unread}
    check_complete("the projectors", kept, expected, advice="Others lie in another file? Give it: --projectors FILE.")
    parts = [name.partition(".") for name in kept]
    taken = {f"{needed[old][0]}.{rest}": f"{old}.{rest}" for old, _, rest in parts}
    done.report.taken |= taken
    return {new: kept[old].to(dtype).clone() for new, old in taken.items()}
