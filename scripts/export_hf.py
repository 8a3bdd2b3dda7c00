"""The same as `langdc export`; --help shows its arguments."""

from langdc.cli import door

main = door("export")

if __name__ == "__main__":
    raise SystemExit(main())
