"""Every sentence of SECURITY.md: what is promised about hostile files, replies and places."""

import ast
import importlib.util
import io
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tarfile
import threading
import zlib
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pytest
import torch
from PIL import Image, PngImagePlugin

from langdc import checkpoint, cli, jsonl
from langdc.backbones import backbones
from langdc.config import MemberConfig, RunConfig, check, load
from langdc.convert.files import read_tensors
from langdc.data.records import Record, check_media, read_records
from langdc.decoders import DECODERS
from langdc.endpoint import Endpoint, EndpointConfig, EndpointError
from langdc.evaluate.judge import Verdict
from langdc.evaluate.settings import JudgeConfig
from langdc.evaluate.tasks import build_task
from langdc.language_models import open_tokenizer
from langdc.prepare.rows import read
from langdc.train import chain, output
from langdc.video import probe, read_frames, write_video
from langdc.videoindex import FORMATS
from tests import stock
from tests.evaluate import runs

ROOT = Path(__file__).resolve().parent.parent
SOURCES = [path for part in ("langdc", "train", "eval", "data_prep", "scripts") for path in (ROOT / part).rglob("*.py")]
PAGES = sorted((ROOT / "langdc").rglob("*.html"))
DEEP = "[" * 100_000
TESTED: set[str] = set()


def sentence(begin: str) -> Callable:
    """Marks the test of a sentence of SECURITY.md by its first words."""
    TESTED.add(begin)
    return lambda test: test


def sentences() -> list[str]:
    found = re.findall(r"^\* (.*(?:\n  .*)*)", (ROOT / "SECURITY.md").read_text(), re.MULTILINE)
    return [" ".join(each.split()) for each in found]


def test_every_sentence_has_a_test() -> None:
    assert len(sentences()) > 15
    assert [each for each in sentences() if not each.startswith(tuple(TESTED))] == []
    assert [begin for begin in TESTED if not any(each.startswith(begin) for each in sentences())] == []


def calls(path: Path) -> Iterator[tuple[str, ast.Call]]:
    """The calls in a file, by dotted name."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def keywords(call: ast.Call) -> dict[str, str]:
    return {str(each.arg): ast.unparse(each.value) for each in call.keywords}


def film(path: Path, level: int = 200) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_video(path, np.full((4, 16, 16, 3), level, np.uint8), 4)
    return path


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


# ---- paths


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A folder for records with a film in it, and one beside it."""
    film(tmp_path / "data" / "in.mp4")
    film(tmp_path / "out.mp4")
    (tmp_path / "data" / "link.mp4").symlink_to(tmp_path / "out.mp4")
    (tmp_path / "data" / "linked").symlink_to(tmp_path)
    frames = tmp_path / "data" / "frames"
    frames.mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "secret.png")
    (frames / "1.png").symlink_to(tmp_path / "secret.png")
    (tmp_path / "data-2").mkdir()
    film(tmp_path / "data-2" / "out.mp4")
    return tmp_path / "data"


OUTSIDE = ("../out.mp4", "{top}/out.mp4", "link.mp4", "linked/out.mp4", "../data-2/out.mp4", "frames")


def records(data: Path, name: str, **more: object) -> Path:
    fps = {"fps": 1.0} if name == "frames" else {}
    asked = {"kind": "what", "question": "what ?", "answer": "this"}
    line = {"id": "r", "video": name.format(top=data.parent), "questions": [asked], **fps, **more}
    (data / "mine.jsonl").write_text(json.dumps(line) + "\n")
    return data / "mine.jsonl"


@sentence("The path of a medium in a record stays inside the folder")
@pytest.mark.parametrize("name", OUTSIDE)
def test_a_path_that_leads_outside_is_refused(data: Path, name: str) -> None:
    file = records(data, name)
    with pytest.raises(ValueError, match=r"(?s)leads outside the folder.*--allow-outside.*line 1 \(id 'r'\)"):
        check_media(file, read_records(file))
    assert check_media(file, read_records(file), allow_outside=True)
    task = MemberConfig(name="records", data=str(file))  # pyright: ignore[reportCallIssue]
    with pytest.raises(ValueError, match="leads outside the folder"):
        (strict := build_task(task, False)).path(strict.records[0])
    assert (free := build_task(task, True)).path(free.records[0]).exists()


@pytest.mark.parametrize("name", ["in.mp4", "./in.mp4", "../data/in.mp4", "{top}/data/in.mp4", "linked/data/in.mp4"])
def test_a_path_that_stays_inside_is_read(data: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    file = records(data, name)
    assert check_media(file, read_records(file))
    monkeypatch.chdir(data)
    assert check_media("mine.jsonl", read_records("mine.jsonl"))


@pytest.mark.parametrize("name", ["a\0b.mp4", "x" * 300 + ".mp4"])
def test_a_name_that_no_file_can_have_is_a_missing_file(data: Path, name: str) -> None:
    file = records(data, "in.mp4")
    with pytest.raises(ValueError, match=r"line \? \(id 'r'\): there is no file"):
        check_media(file, [Record(id="r", video=name)])


def test_links_of_a_snapshot_of_the_hub_are_inside(tmp_path: Path) -> None:
    snapshot = tmp_path / "datasets--owner--name" / "snapshots" / "abc"
    (snapshot / "videos").mkdir(parents=True)
    blob = film(snapshot.parents[1] / "blobs" / "0123.mp4")
    (snapshot / "videos" / "v.mp4").symlink_to(os.path.relpath(blob, snapshot / "videos"))
    file = records(snapshot, "videos/v.mp4")
    assert check_media(file, read_records(file))
    (snapshot / "videos" / "w.mp4").symlink_to(film(tmp_path / "other.mp4"))
    with pytest.raises(ValueError, match="leads outside"):
        check_media(file, read_records(records(snapshot, "videos/w.mp4")))


def test_commands_allow_outside_by_one_option(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = records(data, "../out.mp4")
    assert cli.main(["data", "check", str(file), "--jobs", "1"]) == 1
    assert "outside, 1" in capsys.readouterr().out
    assert cli.main(["data", "check", str(file), "--jobs", "1", "--allow-outside"]) == 0
    assert "outside (warning), 1" in capsys.readouterr().out
    caption = [
        "data",
        "caption",
        str(file),
        "--teacher",
        "sample:langdc",
        "--captioner",
        "--out",
        str(data / "o.jsonl"),
    ]
    assert cli.main(caption) == 2
    assert "leads outside" in capsys.readouterr().err and not (data / "o.jsonl").exists()
    for more, code in ([], 2), (["--allow-outside"], 0):
        (data / "mine.yaml").write_text(f"extends: sample/langdc/stage3\ntrain: {{data: [{file}]}}")
        assert train(data / "mine.yaml", *more) == code
        assert ("leads outside" in capsys.readouterr().err) == bool(code)


def train(config: Path, *more: str) -> int:
    """One step of the sample's language model."""
    small = [f"output={config.parent / 'run'}", "start=null", "train.steps=1", "train.targets=none", "train.kinds=null"]
    return cli.main(["train", str(config), *small, *more])


def test_an_import_stays_inside_the_media(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"video": name.format(top=data.parent), "caption": "x"} for name in ("in.mp4", *OUTSIDE[:5])]
    (data / "rows.json").write_text(json.dumps(rows))
    out = data / "new" / "mine.jsonl"
    assert cli.main(["data", "import", str(data / "rows.json"), "--out", str(out)]) == 1
    assert "5 rows cannot be used" in capsys.readouterr().out
    assert [record.video for record in read_records(out)] == ["../in.mp4"]
    assert cli.main(["data", "import", str(data / "rows.json"), "--out", str(out), "--allow-outside"]) == 0
    assert len(read_records(out)) == 6


# ---- FFmpeg and Pillow


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
        "concat": f"ffconcat version 1.0\nfile {film.name}\n",
        "mpd": f"{head}<Period>{sets}</Period></MPD>",
        "sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\n"
        f"m=video {address.partition(':')[2]} RTP/AVP 96\na=rtpmap:96 H264/90000\n",
    }


@sentence("Playlists and other formats that name files")
@pytest.mark.parametrize("kind", ["m3u8", "concat", "mpd", "sdp"])
@pytest.mark.parametrize("suffix", ["", ".mp4", ".ts", ".jpg"])
def test_playlists_are_no_videos(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, listener: Listener, kind: str, suffix: str
) -> None:
    monkeypatch.chdir(tmp_path)
    file = Path(f"list{suffix or '.' + kind}")
    file.write_text(playlists(listener.address, film(tmp_path / "other.mp4"))[kind])
    for read_one in (probe, lambda path: read_frames(path, frames=1)):
        with pytest.raises(ValueError, match=rf"{file}: cannot be read"):
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


# ---- nesting, archives


@sentence("A line, config, JSON file or reply that is nested too deeply")
def test_deep_nesting_is_an_error_with_a_name(tmp_path: Path) -> None:
    file = tmp_path / "deep.jsonl"
    for deep in (DEEP, *('{"id": ' + "[" * depth + "]" * depth + "}" for depth in (200, 900, 2000, 90_000))):
        file.write_text(json.dumps({"id": "a"}) + "\n" + deep + "\n")
        with pytest.raises(ValueError, match=r"deep\.jsonl has 1 bad line\(s\):\n  line 2: "):
            read_records(file)
    for name in ("deep.yaml", "chain.yaml"):
        (tmp_path / name).write_text(f"a: {DEEP}")
        with pytest.raises(ValueError, match=rf"{name} is not valid YAML"):
            chain.read([tmp_path / name])
    with pytest.raises(ValueError, match="value of seed= is not valid YAML"):
        load(RunConfig, "sample/langdc/stage1", [f"seed={DEEP}"])
    (tmp_path / "deep.json").write_text(DEEP)
    with pytest.raises(ValueError, match=r"deep\.json"):
        read(str(tmp_path / "deep.json"))
    model = shutil.copytree(stock.folder("qwen2_5_vl"), tmp_path / "model")
    (model / "config.json").write_text(DEEP)
    with pytest.raises(ValueError, match=r"config\.json is not valid JSON"):
        checkpoint.open_model(model)


def test_a_deep_reply_is_asked_for_again(endpoint) -> None:
    server = endpoint((200, DEEP.encode()))
    with pytest.raises(EndpointError, match="its reply is no chat completion"):
        connect(server.url, retries=1, pause=0).ask([])
    assert len(server.requests) == 2
    with pytest.raises(ValueError, match="no verdict"):
        Verdict.read("{'pred': " + DEEP + "}")


@sentence("Archives are read member by member")
def test_a_tar_writes_nothing_by_its_names_and_is_no_bomb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "secret.txt").write_text("secret")
    picture = io.BytesIO()
    Image.new("RGB", (4, 4)).save(picture, "png")
    with tarfile.open("set.tar", "w") as tar:
        for name in ("../../evil.png", "/tmp/evil2.png"):
            member = tarfile.TarInfo(name)
            member.size = len(picture.getvalue())
            tar.addfile(member, io.BytesIO(picture.getvalue()))
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE):
            member = tarfile.TarInfo("linked.txt")
            member.type, member.linkname = kind, str(tmp_path / "secret.txt")
            tar.addfile(member)
    before = set(tmp_path.parent.parent.glob("*.png"))
    assert cli.main(["data", "import", "set.tar", "--out", "out/mine.jsonl", "--request", "what ?"]) == 0
    made = [str(record.image) for record in read_records("out/mine.jsonl")]
    assert len(made) == 2 and all(name.startswith("mine_media/") and ".." not in name for name in made)
    assert set(tmp_path.parent.parent.glob("*.png")) == before and not Path("/tmp/evil2.png").exists()
    assert not any("secret" in path.read_text(errors="replace") for path in Path("out").rglob("*") if path.is_file())
    with tarfile.open("bomb.tar", "w") as tar:
        member = tarfile.TarInfo("a.png")
        member.size = 1 << 40
        tar.fileobj.write(member.tobuf())  # pyright: ignore[reportOptionalMemberAccess]
    with pytest.raises(ValueError, match=r"a\.png takes 1,099,511,627,776 bytes"):
        list(read("bomb.tar")[1])


# ---- models


class Evil:
    """Runs code where it is unpickled."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self) -> tuple:
        return Path.touch, (self.place,)


@sentence("Weights are read as safetensors")
def test_no_pickle_runs_code(tmp_path: Path) -> None:
    torch.save({"x": Evil(tmp_path / "ran")}, tmp_path / "w.bin")
    with pytest.raises(ValueError, match="whose code would run"):
        read_tensors(tmp_path / "w.bin")
    assert not (tmp_path / "ran").exists()
    for path in SOURCES:
        for name, call in calls(path):
            given = keywords(call)
            assert name != "torch.load" or given.get("weights_only") == "True", path
            assert not re.fullmatch(r"(\w+\.)*(cPickle|pickle|dill|joblib|marshal|shelve)\.\w+|.*read_pickle", name), (
                path
            )
            assert "allow_pickle" not in given and name not in ("eval", "exec", "yaml.load", "__import__"), path


def with_code(folder: Path, ran: Path, **config: object) -> Path:
    """The folder of a model with code in it, which its settings name."""
    code = f"import pathlib\npathlib.Path({str(ran)!r}).touch()\nclass C: pass\ndef generate(*a, **k): pass\n"
    (folder / "custom_generate").mkdir()
    for name in ("evil.py", "custom_generate/generate.py"):
        (folder / name).write_text(code)
    names = dict.fromkeys(("AutoConfig", "AutoModelForCausalLM", "AutoModel", "AutoTokenizer"), "evil.C")
    for file, more in (("config.json", config), ("tokenizer_config.json", {"tokenizer_class": "EvilTokenizer"})):
        tree = json.loads((folder / file).read_text()) if (folder / file).is_file() else {}
        (folder / file).write_text(json.dumps({**tree, **more, "auto_map": names, "custom_generate": "evil"}))
    return folder


@sentence("Code in a model's folder")
def test_code_of_a_folder_never_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr("builtins.input", lambda *words: [*map(asked.append, words), "yes"][-1])
    ran = tmp_path / "ran"
    known = with_code(shutil.copytree(stock.folder("qwen2_5_vl"), tmp_path / "known"), ran)
    assert open_tokenizer(known) and checkpoint.open_model(known)  # by transformers' own code, which knows the type
    other = with_code(shutil.copytree(stock.folder("qwen2_5_vl"), tmp_path / "other"), ran, model_type="evil")
    with pytest.raises(ValueError):
        checkpoint.open_model(other)
    with pytest.raises(ValueError):
        backbones.build("qwen2_5_vl", source=str(other))
    assert not asked and not ran.exists()


@sentence("Nothing in a checkpoint's folder is imported")
def test_a_class_of_a_checkpoint_is_not_looked_for_in_its_folder(tmp_path: Path) -> None:
    folder = with_code(runs.save_model(tmp_path / "model", "pool"), tmp_path / "ran")
    manifest = json.loads((folder / checkpoint.MANIFEST).read_text())
    for name, said in (("evil:C", "cannot be imported"), ("os:system", "no subclass"), ("subprocess:Popen", "no sub")):
        manifest["model"]["compressor"]["name"] = name
        (folder / checkpoint.MANIFEST).write_text(json.dumps(manifest))
        with pytest.raises(ValueError, match=said):
            checkpoint.load(folder)
    assert not (tmp_path / "ran").exists()


@sentence("Chat templates run in the sandbox")
def test_a_template_reaches_nothing_of_python(tmp_path: Path) -> None:
    import jinja2.exceptions

    folder = shutil.copytree(stock.folder("qwen2_5_vl"), tmp_path / "model")
    (folder / "chat_template.jinja").write_text("{{ messages.__class__.__base__.__subclasses__() }}")
    with pytest.raises((ValueError, jinja2.exceptions.SecurityError)):
        text = open_tokenizer(folder).apply_chat_template([{"role": "user", "content": "x"}], tokenize=False)
        raise AssertionError(text)


# ---- pages


@sentence("What a page shows is escaped")
@pytest.mark.parametrize("page", PAGES, ids=[page.stem for page in PAGES])
def test_pages_load_nothing_from_elsewhere(page: Path) -> None:
    text = page.read_text()
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', text)
    assert policy and policy[1].startswith("default-src 'none'; img-src data:; style-src 'unsafe-inline'")
    assert not re.search(r"https?://|//\w+\.|url\(|@import|<(link|iframe|object|embed|form|base)\b| safe\b", text)


def test_every_template_is_rendered_with_escapes() -> None:
    found = [(path, keywords(call)) for path in SOURCES for name, call in calls(path) if name == "Environment"]
    assert len(found) > 4
    assert [path.name for path, given in found if given.get("autoescape") != "True"] == ["export.py"]  # writes Markdown


# ---- secrets


def connect(url: str, **settings: object) -> Endpoint:
    return Endpoint(check(EndpointConfig, {"url": url, "model": "tiny", **settings}, "test"))


@sentence("The key of an endpoint is read from the environment")
def test_the_key_is_shown_nowhere(endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_KEY", "secret-123")
    other = endpoint("hi")
    for status in (301, 302, 303, 307, 308):
        server = endpoint((status, b"secret-123", {"Location": f"{other.url}?key=secret-123"}))
        with pytest.raises(EndpointError, match=f"HTTP {status}") as error:
            connect(server.url, key_variable="SOME_KEY").ask([])
        assert "secret" not in str(error.value) and other.headers == []
        assert server.headers[0]["Authorization"] == "Bearer secret-123"
    config = check(JudgeConfig, {"url": other.url, "model": "tiny", "key_variable": "SOME_KEY"}, "test")
    assert "secret" not in f"{config!r} {config.model_dump_json()} {Endpoint(config)!r}"


@sentence("A config with a password in the url")
@pytest.mark.parametrize("url", ["https://me:secret@server/v1", "https://server/v1?key=secret"])
@pytest.mark.parametrize("key", [None, "secret", "sk-SECRET", "SECRET KEY"])
def test_a_key_in_a_config_is_refused_unseen(url: str, key: str | None) -> None:
    url = "https://server/v1" if key else url
    with pytest.raises(ValueError, match="key_variable") as error:
        connect(url, key_variable=key)
    assert "secret" not in str(error.value).lower()


# ---- what is trusted


@sentence("**Configs are code.**")
def test_a_config_imports_a_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from langdc.compressors import compressors

    (tmp_path / "imported_by_name.py").write_text("from langdc.compressors.plain import *")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match="cannot be imported"):
        compressors.get("imported_by_name:Nothing")
    assert "imported_by_name" in sys.modules


@sentence("**The folder of a run is yours.**")
def test_a_run_with_files_of_another_user_is_not_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    states = tmp_path / "run" / output.RESUME / "checkpoint-1"
    states.mkdir(parents=True)
    for name in (output.COMPLETE, "states.pt"):
        (states / name).touch()
    config = load(RunConfig, "sample/langdc/stage1", [f"output={tmp_path / 'run'}"])
    for name in (output.RUN, output.SETTINGS):
        (tmp_path / "run" / name).touch()
    monkeypatch.setattr(output, "_differences", lambda *_: "")
    with output.resolve_output_dir(config) as found:
        assert found == tmp_path / "run"
    stat = os.stat

    def of_others(path: object, **options: bool) -> object:
        found = stat(path, **options)  # pyright: ignore[reportArgumentType]
        fields = list(found)
        fields[4] = found.st_uid + (str(path) == str(states / "states.pt"))
        return os.stat_result(fields)

    monkeypatch.setattr(os, "stat", of_others)
    with pytest.raises(ValueError, match=r"states\.pt belongs to another user"), output.resolve_output_dir(config):
        pass


@sentence("**The cache** is")
def test_a_cache_of_another_user_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    assert jsonl.user_cache("tiny") == tmp_path / "home" / "langdc" / "tiny"
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    found = jsonl.user_cache("tiny")
    assert found.parent.parent == tmp_path and found.parent.stat().st_mode & 0o777 == 0o700
    number = os.getuid()
    monkeypatch.setattr(os, "getuid", lambda: number + 1)
    (tmp_path / f"langdc-{number + 1}").symlink_to(found.parent)
    with pytest.raises(ValueError, match="belongs to another user"):
        jsonl.user_cache("tiny")


def test_a_link_in_the_place_of_a_file_that_is_written_is_not_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine").write_text("mine")
    unlink = Path.unlink

    def late(path: Path, missing_ok: bool = False) -> None:
        unlink(path, missing_ok)
        if not (tmp_path / "a.json.partial").is_symlink():
            (tmp_path / "a.json.partial").symlink_to(tmp_path / "mine")

    monkeypatch.setattr(Path, "unlink", late)
    with pytest.raises(FileExistsError):
        jsonl.write_json(tmp_path / "a.json", {})
    assert (tmp_path / "mine").read_text() == "mine"


LISTENING = """
from langdc import distributed
distributed.start(deepspeed=True)
import deepspeed
deepspeed.init_distributed("gloo")
import os, torch
print(type(torch.distributed.distributed_c10d._get_default_store().underlying_store).__name__)
files = [f"/proc/self/fd/{each}" for each in os.listdir("/proc/self/fd")]
own = {os.readlink(each) for each in files if os.path.islink(each)}
for name in ("tcp", "tcp6"):
    for line in open(f"/proc/net/{name}").readlines()[1:]:
        fields = line.split()
        if fields[3] == "0A" and f"socket:[{fields[9]}]" in own:
            print("LISTENS", fields[1].partition(":")[0])
"""


@sentence("**The network of a distributed run.**")
def test_one_process_has_no_store_that_others_reach() -> None:
    done = subprocess.run([sys.executable, "-c", LISTENING], cwd=ROOT, capture_output=True, text=True, check=True)
    listens = re.findall("^LISTENS (.*)$", done.stdout, re.MULTILINE)
    assert not [each for each in listens if set(each) == {"0"}], "on all addresses"
    assert "HashStore" in done.stdout
    for path in SOURCES:
        for name, _ in calls(path):
            assert not re.search(r"HTTPServer|create_server|\.bind$|\.listen$|TCPServer|uvicorn|start_server", name), (
                path
            )


@sentence("No command is handed to a shell.")
def test_no_command_is_handed_to_a_shell() -> None:
    started = 0
    for path in SOURCES:
        for name, call in calls(path):
            started += name.startswith("subprocess.")
            assert name not in ("os.system", "os.popen", "subprocess.getoutput"), path
            assert keywords(call).get("shell", "False") == "False", path
    assert started > 5


def test_temporary_names_are_not_guessable() -> None:
    for path in SOURCES:
        assert not re.search(r"""["']/(var/)?tmp/|mktemp\(""", path.read_text()), path
