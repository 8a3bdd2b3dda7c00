"""The same as `langdc data mix`; --help shows its arguments."""

import sys

from langdc.cli import door

main = door("data mix")

if __name__ == "__main__":
    sys.exit(main())
