"""deepspeed train/stage2.py [--config FILE] [--deepspeed FILE] [key=value ...]  # or: python train/stage2.py ...

Stage 2 trains LangDC's captioner: on image captions, then on density captions (whose length follows how much is in a
segment), then the post-projector that brings its states into the language model.

Without --config it runs the sample recipe, configs/sample/langdc/stage2.yaml, and makes missing sample data or an
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
    code, line = stages.main("stage2", sys.argv[1:] if argv is None else argv, ROOT)
    if line:
        print(line, file=sys.stderr if code else sys.stdout, flush=True)
    return code


if __name__ == "__main__":
    sys.exit(main())
