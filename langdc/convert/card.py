"""README.md of an exported directory: what it is, where its parts come from, how it is loaded."""

from collections.abc import Mapping
from typing import Any


def model_card(name: str, manifest: Mapping[str, Any], parts: Mapping[str, str], adapter: bool) -> str:
    """The card as Markdown. `parts`: the class of each part by its directory."""
    record = manifest.get("training") or {}
    trained = "; ".join(f"{key} {record[key]}" for key in ("steps", "samples", "loss") if key in record)
    rows = [f"| `{folder}/` | `{kind}` |" for folder, kind in parts.items()]
    rows += ["| `adapter/` | PEFT, for the published language model |"] if adapter else []
    sources = [f"- `{source}`: `{identity}`" for source, identity in sorted(manifest["parts"].items())]
    compressor, backbone = manifest["model"]["compressor"]["name"], manifest["model"]["backbone"]["name"]
    return "\n".join(
        [
            "---",
            "library_name: langdc",
            "pipeline_tag: video-text-to-text",
            "license: other",
            "---",
            f"# {name}",
            "",
            f"A video language model: the compressor `{compressor}` turns videos into tokens of the backbone "
            f"`{backbone}`.",
            f"Run `{manifest.get('stage') or 'converted'}`{f': {trained}' if trained else ''}. Data: sha256 "
            f"`{manifest.get('data_sha256', 'not recorded')}`.",
            "",
            "```python",
            "from langdc import VideoLM",
            f'VideoLM.from_pretrained("{name}").open("clip.mp4").ask("What happens?")',
            "```",
            "",
            "| directory | loads with transformers as |",
            "|---|---|",
            *rows,
            "",
            "`model.safetensors` and `langdc.json` hold the rest and what joins the parts.",
            "",
            "Made of:",
            *(sources or ["- weights that were converted or drawn at random"]),
            "",
            "The licences of these parts and of the training data apply to the whole; name them before publishing.",
            "",
        ]
    )
