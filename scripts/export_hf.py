"""The same as `langdc export`; --help shows its arguments."""

import sys

from langdc.cli import door

main = door("export")

if __name__ == "__main__":
    sys.exit(main())
