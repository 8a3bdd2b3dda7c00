"""The same as `langdc data preview`; --help shows its arguments."""

from langdc.cli import door

main = door("data preview")

if __name__ == "__main__":
    raise SystemExit(main())
