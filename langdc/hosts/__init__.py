"""Large models and their habits: how each encodes, prompts and splices."""

from langdc.hosts import videogpt_plus
from langdc.hosts.base import hosts

__all__ = ["hosts", "videogpt_plus"]
