"""python scripts/run_stages.py CONFIG_DIR [--processes N] [key=value ...]    # the same as: langdc train CONFIG_DIR"""

from langdc.cli import door

main = door("train")

if __name__ == "__main__":
    raise SystemExit(main())
