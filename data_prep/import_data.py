"""The same as `langdc data import`; --help shows its arguments."""

from langdc.cli import door

main = door("data import")

if __name__ == "__main__":
    raise SystemExit(main())
