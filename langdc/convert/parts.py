"""The parts of a checkpoint under conversion, each written as a directory of its own and accounted for by name."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from langdc.convert import files, images, internvideo2, language
from langdc.convert.names import NameReport
from langdc.hashing import tensor_hash

LANGUAGE, CAPTIONER, IMAGE, VIDEO = "language_model", "captioner", "image_encoder", "video_encoder"


@dataclass
class Made:
    """What was written so far: the report, and `hashes` of every tensor that loading must give, by its name there."""

    folder: Path
    dtype: torch.dtype
    report: NameReport = field(default_factory=NameReport)
    hashes: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def expect(self, prefix: str, tensors: Mapping[str, Tensor]) -> None:
        """Remember what loading must give."""
        self.hashes |= {f"{prefix}{name}": tensor_hash(tensor, torch.float32) for name, tensor in tensors.items()}


def write_language(
    made: Made, name: str, prefix: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, source: Path
) -> None:
    """Write a language model as the directory `name`; `prefix` is where the loaded model has it."""
    made.expect(prefix, model.state_dict())
    language.write(made.folder / name, model, tokenizer, source, made.dtype)


def captioner_tokenizer(source: Path, end_of: Path) -> PreTrainedTokenizerBase:
    """The language model's tokenizer, ending texts as the captioner's generation settings say it ends captions."""
    tokenizer = language.load_tokenizer(source, [], None)
    file = end_of / "generation_config.json"
    stated = files.read_json(file, "to know where captions end").get("eos_token_id") if file.is_file() else None
    ends = [] if stated is None else stated if isinstance(stated, list) else [stated]
    if ends and tokenizer.eos_token_id not in ends:
        # every id that the tokenizer calls the end would stop a caption, and this one did not stop the authors'
        chosen: Any = tokenizer.pad_token_id if tokenizer.pad_token_id in ends else ends[-1]
        tokenizer.eos_token = tokenizer.convert_ids_to_tokens(chosen)
    return tokenizer


def write_image_encoder(made: Made, source: Path, published: Mapping[str, Tensor]) -> int:
    """Write CLIP's directory, from the release's own tensors where it holds them; its width."""
    if not source.is_dir():
        raise ValueError(f"{source} is no directory; the image encoder is a CLIP directory in Hugging Face layout.")
    config = images.vision_config(source)
    tensors, report = images.convert(published or files.read_folder(source), config, made.dtype)
    made.report.join(report, f"{IMAGE}: ")
    images.write(made.folder / IMAGE, config, tensors, source)
    inside = {images.loaded_name(name): tensor for name, tensor in tensors.items()}
    made.expect("backbone.encoders.image.model.", inside)
    return config.hidden_size


def write_video_encoder(
    made: Made, source: Path | None, published: Mapping[str, Tensor], heads: int | None
) -> internvideo2.InternVideo2Config:
    """Write InternVideo2's directory, from the release's own tensors where it holds them; its sizes."""
    if not published:
        assert source is not None
        published, heads = internvideo2.read(source, heads)
    config, tensors, report = internvideo2.convert(published, heads, made.dtype)
    made.report.join(report, f"{VIDEO}: ")
    internvideo2.write(made.folder / VIDEO, config, tensors)
    made.expect("backbone.encoders.video.model.", tensors)
    return config
