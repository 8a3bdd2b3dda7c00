"""`langdc embed`: what a language model reads of a video and a question, for a server."""

import argparse
import base64
import io
import json
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from langdc import jsonl
from langdc.backbones.inputs import text_inputs
from langdc.convert.vllm import MODELS
from langdc.log import screen
from langdc.pipeline import VideoLM
from langdc.tools import options as shared
from langdc.tools.ask import add_model, method
from langdc.tools.zoo import INSIDE


def main(argv: Sequence[str] | None = None) -> int:
    """Write the embeddings of a templated prompt; 0 when they are written."""
    parser = argparse.ArgumentParser(prog="langdc embed", description=__doc__)
    parser.add_argument("video", help="a video or image file")
    parser.add_argument("question", help="the question")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.safetensors", help="file to make")
    said = "also write FILE.json, the body of a request to vLLM's /v1/completions"
    parser.add_argument("--for", dest="server", choices=["vllm"], help=said)
    add_model(parser, required=True, inside=False)
    options = parser.parse_args(argv)
    out = options.out
    if out.suffix != ".safetensors":
        raise ValueError(f"--out {out}: give a name that ends in .safetensors.")
    if not options.server and (stale := out.with_suffix(".json")).exists():
        raise ValueError(f"{stale} is there already, of another prompt perhaps. Delete it, or add --for vllm.")
    files = [out, *([out.with_suffix(".json")] if options.server else [])]
    for file in files:
        jsonl.check_output(file)
    shared.check_asked(options.video, options.question, options.max_new_tokens)
    chosen = method(options)
    _refuse([chosen[kind]["name"] for kind in INSIDE if kind in chosen])
    lm = VideoLM.from_pretrained(options.model, **chosen, **shared.place(options))
    found = prompt_embeds(lm, options.video, options.question).cpu()
    compressor = chosen.get("compressor") or lm.model.config.compressor.model_dump(mode="json")
    how = json.dumps({**chosen, "compressor": compressor})
    about = {"model": options.model, "question": options.question, "method": how}
    jsonl.make_folder(out.parent)
    with jsonl.writing(out) as partial:
        save_file({"prompt_embeds": found}, partial, {**about, "n": str(len(found)), "positions": "0 to n - 1"})
    if options.server:
        body = {"prompt_embeds": serialised(found), "max_tokens": options.max_new_tokens, "temperature": 0}
        jsonl.write_json(files[1], {**body, "stop_token_ids": lm.model.backbone.end_ids})
    screen().print(f"{', '.join(map(str, files))}: {len(found):,} x {found.shape[1]:,}, {found.dtype}")
    return 0


@torch.no_grad()
def prompt_embeds(lm: VideoLM, path: str | Path, question: str) -> Tensor:
    """The embeddings of a question's whole templated prompt, the video's tokens among them: [n,D] in the model's type.

    ValueError where they alone would not give the same answer: rows are not numbered one after the other, some are
    padding, or the language model gets more than its input.
    """
    _refuse([type(part).__name__ for part in (lm.layers, lm.kv) if part is not None])
    video = lm.open(path, question=question)
    tokens = lm.compress([(video, question)])[0].tokens
    backbone = lm.model.backbone
    inputs = text_inputs(backbone, [lm.prompt(question, video)], [[tokens]])
    name, places = type(backbone).__name__, inputs.positions
    compressing = not MODELS.isdisjoint(getattr(backbone, "model_types", ()))
    instead = "Have vLLM compress the video (docs/serving.md), or take" if compressing else "Take"
    if inputs.extra:
        raise ValueError(
            f"{name} gives its language model more of this video than its input ({', '.join(inputs.extra)}), and "
            f"embeddings are all that a server takes. {instead} a model without."
        )
    if inputs.spliced[0].padding is not None:
        raise ValueError(
            "Some rows of this prompt are padding, which LangDC has with soft_token='released'; a server would read "
            "them. Take a checkpoint with soft_token 'at' or 'predicting'."
        )
    if not (places == torch.arange(places.shape[2], device=places.device)).all():
        raise ValueError(
            f"{name} numbers a video's tokens by time, row and column; a server numbers embeddings one after the "
            f"other. {instead} a model with one axis of positions; where "
            "a compressor makes new tokens, one that was trained with the backbone's new_tokens: words fits, too."
        )
    return inputs.embeds[0].clone()


def _refuse(inside: Sequence[str]) -> None:
    if inside:
        raise ValueError(f"{inside[0]} works inside the language model, which a server runs. Leave it out.")


def serialised(embeds: Tensor) -> str:
    """A tensor [n,D] as vLLM's API takes it: what torch saves of it, in base64."""
    file = io.BytesIO()
    torch.save(embeds, file)
    return base64.b64encode(file.getvalue()).decode()
