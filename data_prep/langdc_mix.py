"""The same as `langdc data mix`; --help shows its arguments."""

from langdc.cli import door

main = door("data mix")

if __name__ == "__main__":
    raise SystemExit(main())
