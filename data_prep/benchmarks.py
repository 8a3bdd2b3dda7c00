"""The same as `langdc data benchmark`; --help shows its arguments."""

from langdc.cli import door

main = door("data benchmark")

if __name__ == "__main__":
    raise SystemExit(main())
