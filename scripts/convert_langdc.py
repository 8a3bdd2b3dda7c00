"""The same as `langdc convert langdc`; --help shows its arguments."""

from langdc.cli import door

main = door("convert langdc")

if __name__ == "__main__":
    raise SystemExit(main())
