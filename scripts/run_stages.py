"""python scripts/run_stages.py CONFIG_DIR [--processes N] [key=value ...]    # the same as: langdc train CONFIG_DIR"""

from langdc.train.run import main

if __name__ == "__main__":
    raise SystemExit(main())
