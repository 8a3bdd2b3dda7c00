"""The same as `langdc convert internvideo2`; --help shows its arguments."""

from langdc.cli import door

main = door("convert internvideo2")

if __name__ == "__main__":
    raise SystemExit(main())
