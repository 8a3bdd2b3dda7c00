"""The same as `langdc eval`; --help shows its arguments.

Several processes share the videos: torchrun --nproc-per-node 2 eval/run.py --config configs/sample/eval.yaml
"""

import sys

from langdc.cli import door

main = door("eval")

if __name__ == "__main__":
    sys.exit(main())
