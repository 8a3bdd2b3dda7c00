"""The built-in sample: scenes, questions, frames, and small backbones of the same classes as the full-size ones."""

from pathlib import Path

WEIGHTS = Path(__file__).parent / "weights"


def weights(name: str) -> Path:
    """The folder of packaged weights: "clip", "internvideo2", "language_model", "langdc", "vlm"."""
    there = sorted(p.name for p in WEIGHTS.iterdir() if p.is_dir()) if WEIGHTS.is_dir() else []
    if name not in there:
        raise ValueError(f"The package has no sample weights {name!r}; there is: {', '.join(there) or 'nothing'}.")
    return WEIGHTS / name
