"""The same as `langdc report`; --help shows its arguments."""

import sys

from langdc.cli import door

main = door("report")

if __name__ == "__main__":
    sys.exit(main())
