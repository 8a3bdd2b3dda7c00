"""deepspeed train/stage3.py [--config FILE] [--deepspeed FILE] [key=value ...]    # or: python train/stage3.py; --help

Stage 3 teaches the language model to answer from compressed tokens, with adapters (LoRA) or whole.
The same as `langdc train`; without a config it is stage3 of the sample recipe, and what that needs is made first.
"""

from langdc.cli import door

main = door("train", stage="stage3")

if __name__ == "__main__":
    raise SystemExit(main())
