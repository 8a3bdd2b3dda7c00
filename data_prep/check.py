"""The same as `langdc data check`; --help shows its arguments."""

from langdc.cli import door

main = door("data check")

if __name__ == "__main__":
    raise SystemExit(main())
