"""Hostile videos, playlists and images, as SECURITY.md says."""

import importlib.util
import shutil
import socket
import subprocess
import sys
import threading
import zlib
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import av
import pytest
from PIL import Image, PngImagePlugin

from langdc.decoders import DECODERS
from langdc.video import probe, read_frames
from langdc.videoindex import FORMATS
from tests.security import ROOT, film, sentence


class Listener:
    """Counts connections to a port of this machine."""

    def __init__(self) -> None:
        self.server, self.heard = socket.create_server(("127.0.0.1", 0)), 0
        self.address = f"127.0.0.1:{self.server.getsockname()[1]}"
        threading.Thread(target=self.listen, daemon=True).start()

    def listen(self) -> None:
        try:
            while True:
                self.server.accept()[0].close()
                self.heard += 1
        except OSError:
            pass


@pytest.fixture
def listener() -> Iterator[Listener]:
    made = Listener()
    yield made
    made.server.close()


def colon_names(address: str) -> list[str]:
    protocols = [
        f"{name}:other.mp4" for name in ("concat", "file", "subfile,,start,0,end,0,,", "cache", "async", "data")
    ]
    return [f"http:/{address}/x.mp4", "12:30.mp4", "pipe:0", "%03d.mp4", "C:x.mp4", *protocols]


@sentence("FFmpeg opens the file that is named")
@pytest.mark.parametrize("decoder", ["pyav", "decord"])
def test_a_name_that_begins_as_a_protocol_is_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, listener: Listener, decoder: str
) -> None:
    pytest.importorskip("av" if decoder == "pyav" else decoder)
    monkeypatch.chdir(tmp_path)
    film(Path("other.mp4"), 0)
    for name in colon_names(listener.address):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(film(tmp_path / "own.mp4"), name)
        assert read_frames(name, frames=1, decoder=decoder).pixels.float().mean() > 150, name
    assert listener.heard == 0


def test_torchcodec_is_given_an_absolute_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    given: list[str] = []

    def reader(path: str | bytes, **_: object) -> None:
        given.extend([path] if isinstance(path, str) else [])
        raise RuntimeError("not here")

    module = SimpleNamespace(VideoDecoder=reader)
    monkeypatch.setitem(sys.modules, "torchcodec", SimpleNamespace(decoders=module, __spec__=SimpleNamespace()))
    monkeypatch.setitem(sys.modules, "torchcodec.decoders", module)
    assert "torchcodec" in DECODERS
    read_frames(film(Path("12:30.mp4")), frames=1, decoder="torchcodec")
    assert given == [str(tmp_path / "12:30.mp4")]


@sentence("decord and torchcodec, where they are asked for")
def test_a_header_that_promises_anything_ends_no_process(tmp_path: Path) -> None:
    file = film(tmp_path / "a.mp4")
    content = bytearray(file.read_bytes())
    place = content.index(b"stts") + 12
    content[place : place + 4] = (2 * 10**9).to_bytes(4)
    file.write_bytes(content)
    words = f"from langdc.video import read_frames; print(read_frames({str(file)!r}, frames=2, decoder='NAME').seconds)"
    for name in ("pyav", *(["decord"] if importlib.util.find_spec("decord") else [])):
        done = [sys.executable, "-c", words.replace("NAME", name)]
        assert "tensor" in subprocess.run(done, cwd=ROOT, capture_output=True, text=True, check=True).stdout


def playlists(address: str, film: Path) -> dict[str, str]:
    """Files that name another one on this machine, and an address."""
    segments = [f"#EXTINF:1,\n{each}\n" for each in (film.name, film.as_uri(), f"http://{address}/x.ts")]
    period = f"<BaseURL>{film.name}</BaseURL><SegmentBase/>"
    sets = f'<AdaptationSet mimeType="video/mp4"><Representation id="1">{period}</Representation></AdaptationSet>'
    head = '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" mediaPresentationDuration="PT1S">'
    return {
        "m3u8": "#EXTM3U\n#EXT-X-TARGETDURATION:1\n" + "".join(segments) + "#EXT-X-ENDLIST\n",
        "m3u": f"\ufeff\r\n#EXTM3U\r\n{film.name}\r\n",
        "txt": f"file '{film.name}'\n",
        "pls": f"[playlist]\nFile1={film.name}\n",
        "concat": f"ffconcat version 1.0\nfile {film.name}\n",
        "mpd": f"{head}<Period>{sets}</Period></MPD>",
        "sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\n"
        f"m=video {address.partition(':')[2]} RTP/AVP 96\na=rtpmap:96 H264/90000\n",
    }


@sentence("Playlists and other formats that name files")
@pytest.mark.parametrize("kind", ["m3u8", "concat", "mpd", "sdp", "m3u", "txt", "pls"])
@pytest.mark.parametrize("suffix", ["", ".mp4", ".ts", ".jpg"])
def test_playlists_are_no_videos(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, listener: Listener, kind: str, suffix: str
) -> None:
    monkeypatch.chdir(tmp_path)
    file = Path(f"list{suffix or '.' + kind}")
    file.write_text(playlists(listener.address, film(tmp_path / "other.mp4"))[kind])
    for read_one in (probe, lambda path: read_frames(path, frames=1)):
        with pytest.raises(ValueError, match=rf"{file}: cannot be read.*It is a list of other files"):
            read_one(file)
    assert listener.heard == 0


def test_numbered_images_are_not_found_by_a_pattern(tmp_path: Path) -> None:
    for number in (1, 2):
        Image.new("RGB", (16, 16), "red").save(tmp_path / f"f{number:03}.tiff")
    (tmp_path / "f%03d.tiff").write_bytes(b"no picture")
    with pytest.raises(ValueError, match="cannot be read"):
        probe(tmp_path / "f%03d.tiff")


def test_no_format_that_is_read_opens_other_files() -> None:
    others = {
        "hls",
        "applehttp",
        "concat",
        "dash",
        "imf",
        "sdp",
        "rtsp",
        "rtp",
        "image2",
        "vobsub",
        "lavfi",
        "avisynth",
    }
    assert not others & set(FORMATS.split(","))


def huge_png(side: int) -> bytes:
    """A black picture of one bit per pixel."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return len(content).to_bytes(4) + kind + content + zlib.crc32(kind + content).to_bytes(4)

    head = side.to_bytes(4) * 2 + bytes([1, 0, 0, 0, 0])
    rows = zlib.compress(bytes(side * (side // 8 + 1)), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def huge_video(path: Path, side: int) -> Path:
    with av.open(str(path), "w", format="mov") as container:
        stream = container.add_stream("png", rate=1)
        stream.width, stream.height, stream.pix_fmt = 16, 16, "rgb24"
        for number in range(2):
            packet = av.Packet(huge_png(side))
            packet.stream, packet.pts, packet.dts, packet.duration = stream, number, number, 1
            packet.time_base, packet.is_keyframe = Fraction(1), True
            container.mux(packet)
    return path


@sentence("Pictures of more than 179 million pixels")
def test_a_picture_that_is_too_large_is_an_error_of_its_file(tmp_path: Path) -> None:
    image = tmp_path / "large.png"
    image.write_bytes(huge_png(14_000))
    for file in (image, huge_video(tmp_path / "large.mov", 14_000), huge_video(tmp_path / "larger.mov", 20_000)):
        for read_one in (probe, lambda path: read_frames(path, frames=1)):
            with pytest.raises(ValueError, match=str(file)):
                read_one(file)


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("x"), ZeroDivisionError(), KeyError(1), EOFError()])
def test_whatever_pillow_raises_is_an_error_of_its_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")

    def raising(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(Image.Image, "convert", raising)
    with pytest.raises(ValueError, match=r"a\.png: cannot be read as an image"):
        read_frames(tmp_path / "a.png")


def test_a_text_chunk_that_unpacks_to_much_is_an_error_of_its_file(tmp_path: Path) -> None:
    info = PngImagePlugin.PngInfo()
    info.add_text("x", "0" * (PngImagePlugin.MAX_TEXT_CHUNK + 1), zip=True)
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png", pnginfo=info)
    with pytest.raises(ValueError, match=r"a\.png: cannot be read as an image"):
        read_frames(tmp_path / "a.png")


@sentence("Pillow opens BMP, GIF, JPEG, PNG and WebP")
def test_other_formats_of_pillow_are_not_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError("a program was started")

    monkeypatch.setattr(subprocess, "Popen", never)
    for kind in ("EPS", "TIFF", "PPM"):
        Image.new("RGB", (8, 8)).save(tmp_path / "a.png", format=kind)
        with pytest.raises(ValueError, match=r"a\.png: cannot be read as an image"):
            read_frames(tmp_path / "a.png")
    for kind in ("BMP", "GIF", "JPEG", "PNG", "WEBP", "MPO"):
        Image.new("RGB", (8, 8)).save(tmp_path / "a.jpg", format=kind)
        assert read_frames(tmp_path / "a.jpg").pixels.shape[-2:] == (8, 8)
