"""The same as `langdc convert llava_video`; --help shows its arguments."""

from langdc.cli import door

main = door("convert llava_video")

if __name__ == "__main__":
    raise SystemExit(main())
