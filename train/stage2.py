"""deepspeed train/stage2.py [--config FILE] [--deepspeed FILE] [key=value ...]    # or: python train/stage2.py; --help

Stage 2 trains LangDC's captioner on image and density captions, then the post-projector into the language model.
The same as `langdc train`; without a config it is stage2 of the sample recipe, and what that needs is made first.
"""

from langdc.cli import door

main = door("train", stage="stage2")

if __name__ == "__main__":
    raise SystemExit(main())
