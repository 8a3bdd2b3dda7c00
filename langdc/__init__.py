"""LangDC: train, fine-tune and compare compressors of video tokens."""

from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from langdc.pipeline import VideoLM

try:
    __version__ = version("langdc")
except PackageNotFoundError:  # a source tree that is not installed
    __version__ = "0+source"

__all__ = ["VideoLM", "__version__"]


def __getattr__(name: str):
    """Load `VideoLM` on first use: it brings torch and transformers with it."""
    if name == "VideoLM":
        from langdc.pipeline import VideoLM

        return VideoLM
    raise AttributeError(f"module 'langdc' has no attribute {name!r}")
