"""The same as `langdc data caption`; --help shows its arguments."""

from langdc.cli import door

main = door("data caption")

if __name__ == "__main__":
    raise SystemExit(main())
