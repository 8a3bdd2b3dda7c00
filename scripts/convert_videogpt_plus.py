"""The same as `langdc convert videogpt_plus`; --help shows its arguments."""

from langdc.cli import door

main = door("convert videogpt_plus")

if __name__ == "__main__":
    raise SystemExit(main())
