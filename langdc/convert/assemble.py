"""A release of VideoGPT+ or LangDC as one checkpoint of this project, with all its parts inside it."""

import argparse
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from transformers import CONFIG_MAPPING, PretrainedConfig

from langdc import checkpoint, jsonl
from langdc.captioner import SoftToken
from langdc.config import ModelConfig, check
from langdc.convert import files, internvideo2, language, parts, release
from langdc.convert.commands import DTYPES, REPORT, check_saved, open_output
from langdc.convert.names import SHOWN, NameReport, check_complete
from langdc.log import screen
from langdc.projectors import build_projector

Branch = Literal["cap", "pool", "dual"]
_SYSTEM = "You are a helpful AI assistant."
# How the authors lay out a conversation; the backbone puts the system message first.
_QWEN_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_PHI3_TEMPLATE = (
    "{% for message in messages %}{% if not loop.first %}{{ '\n' }}{% endif %}<|{{ message['role'] }}|>\n"
    "{{ message['content'] }}<|end|>{% endfor %}{% if add_generation_prompt %}{{ '\n<|assistant|>\n' }}{% endif %}"
)
_CAPTION_PROMPT = (
    f"<|im_start|>system\n{_SYSTEM}<|im_end|><|im_start|>user\n{{video}}\nPlease provide a brief description of the "
    "video, focusing on the main subjects, their actions, the background scenes.\n<|im_end|><|im_start|>assistant\n"
)
_STREAMS = {"image": "image_mm_projector", "video": "mm_projector"}
_SEEN, _POOLED = [12, 8], [6, 4]
"""Grid sides per stream: of VideoGPT+'s tokens and of the captioner's input, and of LangDC's pooled tokens."""
_DUAL_LAYER = 0
"""The released dual form reads the embeddings of captions, whatever layer its settings name."""
_LONGEST = {"cap": 128, "dual": 256}


@dataclass(frozen=True)
class _Family:
    """How the two families of releases differ."""

    model_type: str
    text_type: str
    template: str


_FAMILIES = {
    "langdc": _Family("VideoQwenVQA", "qwen2", _QWEN_TEMPLATE),
    "videogpt_plus": _Family("VideoGPT+", "phi3", _PHI3_TEMPLATE),
}


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


def run(kind: str, arguments: argparse.Namespace) -> int:
    """Convert, print what became of all tensors, and load the result again."""
    given = {name: value for name, value in vars(arguments).items() if name in Options.__dataclass_fields__}
    made = convert(kind, arguments.release, arguments.out, Options(**{**given, "dtype": DTYPES[arguments.dtype]}))
    console = screen()
    console.print(*made.report.lines(), *made.notes, sep="\n")
    if not arguments.no_verify_save:
        console.print(check_saved(arguments.out, made.hashes))
    return 0


def convert(kind: str, source: Path, out: Path, options: Options) -> parts.Made:
    """Write the checkpoint `out`, whole or not at all.

    ValueError names every tensor that is missing, unknown or misshapen, and every part that was not found.
    """
    with open_output(out) as beside:
        found = release.open_release(source, _FAMILIES[kind].model_type)
        if found.settings.get("mm_use_im_start_end"):
            raise ValueError(
                f"{found.folder} has mm_use_im_start_end, marks around videos that no backbone here writes."
            )
        made = parts.Made(beside, options.dtype)
        _write(kind, found, options, made)
        jsonl.write_json(beside / REPORT, made.report.as_json())
    return made


def _write(kind: str, found: release.Release, options: Options, made: parts.Made) -> None:
    branch = _branch(kind, found.settings, options)
    text_source, tokenizer_source, width = _language(_FAMILIES[kind], found, options, made)
    video = _video_encoder(found, options, made)
    image_source = _part("image_mm_vision_tower", found, options.image_encoder, "--image-encoder", "The image encoder")
    image_width = parts.write_image_encoder(made, image_source, found.parts["image"])
    projectors: dict[str, Tensor] = {} if options.projectors is None else release.projectors_of(options.projectors)
    widths = {"image": image_width, "video": video.width, "backbone": width}
    captioned = kind == "langdc" and branch != "pool"
    if captioned:
        captioner, widths["captioner"] = _captioner(found, options, made, tokenizer_source)
        if (captioner / release.PROJECTORS).is_file():
            projectors |= release.projectors_of(captioner / release.PROJECTORS)
    projectors |= found.parts["projectors"]
    backbone = _backbone(kind, found.settings, made, video)
    compressor = {"name": "pool", "sides": _POOLED if kind == "langdc" else _SEEN}
    if captioned:
        compressor = _compressor(found.settings, options, made, branch)
    tensors = _projectors(projectors, backbone, compressor, widths, branch, made)
    made.expect("", tensors)
    model = check(ModelConfig, {"backbone": backbone, "compressor": compressor}, str(found.folder))
    info = {"converted_from": f"{found.settings['model_type']} {found.folder.name}", "base": text_source.name}
    checkpoint.write(model, made.folder, tensors=tensors, info=info)


def _branch(kind: str, settings: Mapping[str, Any], options: Options) -> Branch:
    if options.branch is not None:
        return options.branch
    if kind == "videogpt_plus":
        return "pool"
    said = bool(settings.get("is_cap_branch")), bool(settings.get("is_pool_branch"))
    known: dict[tuple[bool, bool], Branch] = {(True, True): "dual", (True, False): "cap", (False, True): "pool"}
    if said not in known:
        allowed = ", ".join(get_args(Branch))
        raise ValueError(
            f"config.json names neither branch (is_cap_branch, is_pool_branch); say it: --branch {allowed}."
        )
    return known[said]


def _part(key: str, found: release.Release, given: Path | None, option: str, what: str) -> Path:
    return release.locate(found.settings.get(key), given, found.folder, option, what)


def _language(kind: _Family, found: release.Release, options: Options, made: parts.Made) -> tuple[Path, Path, int]:
    """Write the language model: where its settings and its tokenizer come from, and its width."""
    settings_of = found.folder
    if found.adapted:
        stated = files.read_json(found.folder / "adapter_config.json", "to know the model below the adapter")
        named = stated.get("base_model_name_or_path")
        settings_of = release.locate(named, options.language, found.folder, "--language", "The language model")
        config, published = language.causal_config(settings_of), files.read_folder(settings_of)
    else:
        config, published = _own_config(kind, found.settings), found.parts["language"]
    tokenizer_of = settings_of if options.language is None else options.language
    tokenizer = language.load_tokenizer(tokenizer_of, _added(found.settings), kind.template)
    model, report = language.build("the language model", config, published, options.dtype, len(tokenizer))
    _account(made, report, found, parts.LANGUAGE)
    if found.adapted:
        model, merged = language.merge_adapter(model, found.folder, options.dtype)
        made.report.join(merged)
    parts.write_language(made, parts.LANGUAGE, "backbone.language_model.", model, tokenizer, settings_of)
    return settings_of, tokenizer_of, config.hidden_size


def _account(made: parts.Made, report: NameReport, found: release.Release, part: str) -> None:
    """Add a language model's report; tensors beside an adapter that belong to no part are refused."""
    made.report.join(report, f"{part}: ")
    others = found.parts["language"] if found.adapted else {}
    if others:
        named = ", ".join(sorted(others)[:SHOWN])
        raise ValueError(f"{found.folder / release.EXTRA} holds {len(others)} tensors of no part known here: {named}.")


def _own_config(kind: _Family, settings: Mapping[str, Any]) -> PretrainedConfig:
    """The language model's settings, of a release that states them among its own."""
    known = {*CONFIG_MAPPING[kind.text_type]().to_dict(), "rope_theta", "rope_scaling"}
    kept = {name: value for name, value in settings.items() if name in known - {"model_type", "architectures"}}
    return CONFIG_MAPPING[kind.text_type](**kept)


def _added(settings: Mapping[str, Any]) -> list[str]:
    """The token that the authors' loader adds to the tokenizer by default; it has a row, but no part reads it."""
    return ["<im_patch>"] if settings.get("mm_use_im_patch_token", True) else []


def _video_encoder(found: release.Release, options: Options, made: parts.Made) -> internvideo2.InternVideo2Config:
    own = found.parts["video"]
    if own:
        return parts.write_video_encoder(made, None, own, options.heads)
    source = _part("mm_vision_tower", found, options.video_encoder, "--video-encoder", "The video encoder")
    return parts.write_video_encoder(made, source, {}, options.heads)


def _captioner(found: release.Release, options: Options, made: parts.Made, tokenizer_of: Path) -> tuple[Path, int]:
    """Write the captioner: where its settings come from, and its width."""
    named = found.settings.get("cap_light_llm") or "cap_light_llm"
    source = release.locate(named, options.captioner, found.folder, "--captioner", "The captioner")
    published = found.parts["captioner"]
    if not published or (found.adapted and files.weight_files(source)):
        published = files.read_folder(source) | published  # what was trained with the adapter is newer
    model, report = language.build("the captioner", language.causal_config(source), published, options.dtype)
    made.report.join(report, f"{parts.CAPTIONER}: ")
    tokenizer = parts.captioner_tokenizer(tokenizer_of, source)
    tokenizer.chat_template = _QWEN_TEMPLATE
    parts.write_language(made, parts.CAPTIONER, "compressor.captioner.language_model.", model, tokenizer, source)
    return source, model.config.hidden_size


def _backbone(
    kind: str, settings: Mapping[str, Any], made: parts.Made, video: internvideo2.InternVideo2Config
) -> dict[str, Any]:
    key = "basepruner_type" if kind == "langdc" else "mm_projector_type"
    return {
        "name": "videogpt_plus",
        "language_model": str(made.folder / parts.LANGUAGE),
        "image_encoder": {
            "name": "image",
            "source": str(made.folder / parts.IMAGE),
            "layer": settings.get("mm_vision_select_layer", -2),
        },
        "video_encoder": {"name": "internvideo2", "source": str(made.folder / parts.VIDEO)},
        "projector": settings.get(key, "mlp2x_gelu"),
        "segments": 4,
        "frames_per_segment": video.frames,
        "system": _SYSTEM,
    }


def _compressor(settings: Mapping[str, Any], options: Options, made: parts.Made, branch: Branch) -> dict[str, Any]:
    kinds = {settings.get("mm_projector_type", "linear"), settings.get("image_mm_projector_type", "linear")}
    if len(kinds) > 1:
        raise ValueError(f"The captioner's projectors are of two kinds ({', '.join(sorted(kinds))}); one is supported.")
    layer = _DUAL_LAYER if branch == "dual" else settings.get("hidden_state_layer", -1)
    return {
        "name": "langdc",
        "captioner": str(made.folder / parts.CAPTIONER),
        "prompt": _CAPTION_PROMPT,
        "layer": layer if options.layer is None else options.layer,
        "pool": _SEEN,
        "soft_token": options.soft_token,
        "max_soft_tokens": options.max_soft_tokens or _LONGEST[branch],
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
    made: parts.Made,
) -> dict[str, Tensor]:
    """The checkpoint's own tensors; ValueError names those that are missing, unknown or misshapen."""
    wanted = {
        old: (f"backbone.projectors.{s}", backbone["projector"], widths[s], widths["backbone"])
        for s, old in _STREAMS.items()
    }
    if compressor["name"] == "langdc":
        for stream, old in _STREAMS.items():
            place = f"compressor.projectors.{stream}"
            wanted[f"cap_{old}"] = (place, compressor["projector"], widths[stream], widths["captioner"])
        post = ("compressor.post_projector", compressor["post_projector"], widths["captioner"], widths["backbone"])
        wanted["llm_projector"] = post
    if branch == "cap" and not any(
        name.startswith(tuple(f"{old}." for old in _STREAMS.values())) for name in published
    ):
        # the authors' loader draws these at random here, and this form never reads them
        made.notes.append("The backbone's own projectors are not in the release: captions alone can be its tokens.")
        for old in _STREAMS.values():
            del wanted[old]
    unread = {} if compressor["name"] == "langdc" else _captions_only(published, made)
    expected, places = {}, {}
    for old, (place, kind, width_in, width_out) in wanted.items():
        with torch.device("meta"):
            states = build_projector(kind, width_in, width_out).state_dict()
        expected |= {f"{old}.{name}": tuple(tensor.shape) for name, tensor in states.items()}
        places |= {f"{old}.{name}": f"{place}.{name}" for name in states}
    kept = {name: tensor for name, tensor in published.items() if name not in unread}
    check_complete("the projectors", kept, expected, advice="Others lie in another file? Give it: --projectors FILE.")
    made.report.taken |= {places[name]: name for name in kept}
    return {places[name]: tensor.to(made.dtype).clone() for name, tensor in kept.items()}


def _captions_only(published: Mapping[str, Tensor], made: parts.Made) -> dict[str, str]:
    unread = [name for name in published if name.startswith(("cap_", "llm_projector"))]
    made.report.dropped |= dict.fromkeys(unread, "this form writes no captions")
    return dict.fromkeys(unread, "")
