"""python -m examples.sample_world.package_langdc runs/sample/langdc/stage3

Packs a trained sample model as the checkpoint that ships (`sample:langdc`): its tensors in half precision, its settings
and training record.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from safetensors.torch import load_file, save_file

from langdc.checkpoint import MANIFEST, WEIGHTS, read_manifest
from langdc.hashing import file_hash
from langdc.sample import WEIGHTS as PACKAGED


def main(argv: Sequence[str] | None = None) -> int:
    """Write langdc/sample/weights/langdc."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[2].strip())
    parser.add_argument("run", type=Path, help="directory of a finished stage 3")
    parser.add_argument("--out", type=Path, default=PACKAGED / "langdc")
    options = parser.parse_args(argv)
    card = read_manifest(options.run)
    options.out.mkdir(parents=True, exist_ok=True)
    tensors = load_file(options.run / WEIGHTS)
    save_file({name: tensor.half() for name, tensor in tensors.items()}, options.out / WEIGHTS)
    card["weights_sha256"] = file_hash(options.out / WEIGHTS)
    (options.out / MANIFEST).write_text(json.dumps(card, indent=1) + "\n")
    text = (
        "# Sample LangDC\n\nThe caption-only LangDC of configs/sample/langdc, trained on the built-in sample videos by "
        "stages 1 to 3. It knows coloured shapes and nothing else, and exists so that `langdc ask --sample` works "
        "right after installation. Figures: the README of the project.\n"
    )
    (options.out / "README.md").write_text(text)
    Console().print(f"{options.out}: {(options.out / WEIGHTS).stat().st_size / 1e6:.1f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
