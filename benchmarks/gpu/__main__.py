"""python -m benchmarks.gpu STEP --out FILE [--device cuda --dtype bfloat16] [--tiny] [--ceilings FLOPS BYTES]

One step of `make gpu`, as a process of its own: its tables as JSON, written anew after each line. With --tiny every
size is small, so that a CPU can try the step; its figures then mean nothing.
"""

import time

BORN = time.perf_counter()  # before anything heavy is imported

import argparse  # noqa: E402
import sys  # noqa: E402
from importlib import import_module  # noqa: E402
from pathlib import Path  # noqa: E402

import torch  # noqa: E402

from benchmarks.gpu.measure import Place  # noqa: E402
from langdc import jsonl  # noqa: E402

STEPS = ("card", "ask", "train", "read", "lora", "methods", "sample")


def main() -> int:
    """Measure; exit code 1 for no card."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[2])
    parser.add_argument("step", choices=STEPS)
    parser.add_argument("--out", type=Path, required=True, help="the JSON file to write")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtype", default="bfloat16", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--tiny", action="store_true", help="small sizes, to try it without a card")
    parser.add_argument("--ceilings", nargs=2, type=float, default=[1e10, 1e10], metavar="N", help="per second")
    options = parser.parse_args()
    if options.device != "cpu" and not torch.cuda.is_available():
        sys.stderr.write("torch finds no CUDA device; with --device cpu --tiny the steps are tried without one.\n")
        return 1
    step = import_module(f"benchmarks.gpu.{options.step}")
    folder = options.out.with_suffix(".files")
    folder.mkdir(parents=True, exist_ok=True)
    place = Place(
        options.device,
        getattr(torch, options.dtype),
        options.tiny,
        folder.resolve(),
        *options.ceilings,
        import_seconds=time.perf_counter() - BORN,
    )
    tables: dict[str, list] = {}
    for row in step.rows(place):
        tables.setdefault(row.pop("table"), []).append(row)
        jsonl.write_json(options.out, tables)
    return 0


if __name__ == "__main__":
    sys.exit(main())
