"""Frozen networks that turn frames into grids of vectors."""

from langdc.encoders import image, video
from langdc.encoders.base import Encoder, encoders

__all__ = ["Encoder", "encoders", "image", "video"]
