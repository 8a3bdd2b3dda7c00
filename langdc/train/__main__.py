"""python -m langdc.train: as `langdc train`."""

import sys

from langdc.train.run import main

if __name__ == "__main__":
    sys.exit(main())
