"""deepspeed train/stage1.py [--config FILE] [--deepspeed FILE] [key=value ...]  # or: python train/stage1.py ...

Stage 1 trains the projectors, on captions of single images, so that what the encoders see enters the language
models at all. Frozen encoder outputs are computed once and kept.

Without --config it runs the sample recipe, configs/sample/langdc/stage1.yaml, and makes missing sample data or an
earlier stage first. Settings are overridden as output=runs/mine or phases.0.steps=50 (a phase by number or name).
A finished run is never overwritten: the next one gets a number. After an interruption the same command goes on.
The last line says the steps trained, the loss (mean of the last tenth) and the directory.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from langdc.training import stages

ROOT = Path(__file__).resolve().parents[1]


def main(argv: Sequence[str] | None = None) -> int:
    """Train; 0 when done, 2 for a mistake in settings or data, 130 when interrupted."""
    code, line = stages.main("stage1", sys.argv[1:] if argv is None else argv, ROOT)
    if line:
        print(line, file=sys.stderr if code else sys.stdout, flush=True)
    return code


if __name__ == "__main__":
    sys.exit(main())
