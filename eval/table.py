"""The same as `langdc report`; --help shows its arguments."""

from langdc.cli import door

main = door("report")

if __name__ == "__main__":
    raise SystemExit(main())
