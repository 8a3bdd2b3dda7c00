"""LangDC: train, fine-tune and compare compressors of video tokens."""

from typing import TYPE_CHECKING

from langdc.version import __version__

if TYPE_CHECKING:
    from langdc.pipeline import VideoLM

__all__ = ["VideoLM", "__version__"]


def __getattr__(name: str):
    """Load `VideoLM` on first use: it brings torch and transformers with it."""
    if name == "VideoLM":
        from langdc.pipeline import VideoLM

        return VideoLM
    raise AttributeError(f"module 'langdc' has no attribute {name!r}")
