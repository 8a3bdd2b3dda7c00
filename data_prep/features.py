"""The same as `langdc data features`; --help shows its arguments."""

from langdc.cli import door

main = door("data features")

if __name__ == "__main__":
    raise SystemExit(main())
