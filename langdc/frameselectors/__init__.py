"""Frame selectors, one file per method: before encoding, they choose the frames that are read for a question."""

from langdc.frameselectors import aks, plain
from langdc.frameselectors.base import frameselectors

build = frameselectors.build

__all__ = ["aks", "build", "frameselectors", "plain"]
