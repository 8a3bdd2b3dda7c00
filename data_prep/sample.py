"""The same as `langdc data sample`; --help shows its arguments."""

from langdc.cli import door

main = door("data sample")

if __name__ == "__main__":
    raise SystemExit(main())
