"""deepspeed train/stage1.py [--config FILE] [--deepspeed FILE] [key=value ...]    # or: python train/stage1.py; --help

Stage 1 trains the projectors, on captions of single images, so that the language models can read what the encoders see.
The same as `langdc train`; without a config it is stage1 of the sample recipe, and what that needs is made first.
"""

from langdc.cli import door

main = door("train", stage="stage1")

if __name__ == "__main__":
    raise SystemExit(main())
