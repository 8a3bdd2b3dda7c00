"""Stored features: no clip is decoded or encoded twice, nothing stale is read, and reading changes no loss."""

from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from langdc import features
from langdc.config import FeatureType
from langdc.features import TYPES, FeatureStore, FrameSpec, _pack, _unpack, preprocessing_hash, read_spec
from langdc.hashing import module_hash
from langdc.interfaces import Backbone
from langdc.model import VideoModel
from langdc.pipeline import VideoLM
from langdc.train.trainable import unfreeze
from langdc.types import FeatureGrid, Frames
from langdc.video import write_video
from tests import stock, tiny
from tests.train import small

ROUNDED: list[FeatureType] = ["bfloat16", "float8"]


class Eye:
    """An encoder that counts the frames it sees; its grid is the mean colour of each frame."""

    def __init__(self) -> None:
        self.videos: list[int] = []

    def __call__(self, videos: list[Frames]) -> list[dict[str, FeatureGrid]]:
        self.videos += [len(video) for video in videos]
        return [{"image": FeatureGrid(v.pixels.float().mean((2, 3))[:, None, None])} for v in videos]


def clips(path: Path) -> list[FrameSpec]:
    return [FrameSpec(path, 4, 4), FrameSpec(path, 2, 4), FrameSpec(path, 4, 4, start=0.0, end=1.0)]


def test_each_clip_is_seen_once(sample_video: Path) -> None:
    eye = Eye()
    store = FeatureStore(eye, "eye", dtype=torch.float32)
    first, second, _ = clips(sample_video)
    store.fill([first, first, second])
    store.fill([first])
    grids, seconds = store.get(first)
    assert eye.videos == [16, 8]
    torch.testing.assert_close(grids["image"].values, Eye()([read_spec(first)])[0]["image"].values)
    assert torch.equal(seconds, read_spec(first).seconds.double())
    store.get(FrameSpec(sample_video, 1, 4))
    assert eye.videos == [16, 8, 4]


def test_a_second_run_reads_the_disk_and_gets_the_same(sample_video: Path, tmp_path: Path) -> None:
    wanted = clips(sample_video)
    first = FeatureStore(Eye(), "eye", tmp_path)
    first.fill(wanted)
    eye = Eye()
    second = FeatureStore(eye, "eye", tmp_path)
    second.fill(wanted)
    for clip in wanted:
        (one, times), (other, again) = first.get(clip), second.get(clip)
        assert torch.equal(one["image"].values, other["image"].values)
        assert torch.equal(times, again)
    assert eye.videos == []
    assert (second.found, second.made) == (3, 0) and first.made == 3
    assert len(list(tmp_path.rglob("*.safetensors"))) == 3
    assert not list(tmp_path.rglob("*.partial*"))


def test_values_are_kept_in_the_stores_type_and_given_in_the_callers(sample_video: Path, tmp_path: Path) -> None:
    store = FeatureStore(Eye(), "eye", tmp_path, dtype=torch.bfloat16)
    (grids, _) = store.get(clips(sample_video)[0])
    (file,) = tmp_path.rglob("*.safetensors")
    assert load_file(file)["image"].dtype == torch.bfloat16
    assert grids["image"].values.dtype == torch.float32
    assert store.get(clips(sample_video)[0], torch.float16)[0]["image"].values.dtype == torch.float16


def test_keys_change_with_everything_that_changes_values(sample_video: Path, tmp_path: Path) -> None:
    copy, other = tmp_path / "copy.mp4", tmp_path / "other.mp4"
    copy.write_bytes(sample_video.read_bytes())
    other.write_bytes(sample_video.read_bytes() + b"\0")
    store = FeatureStore(Eye(), "eye")
    base = store.key(FrameSpec(sample_video, 4, 4))
    assert store.key(FrameSpec(copy, 4, 4)) == base
    different = [
        store.key(FrameSpec(other, 4, 4)),
        store.key(FrameSpec(sample_video, 8, 2)),
        store.key(FrameSpec(sample_video, 4, 4, start=0.5)),
        store.key(FrameSpec(sample_video, 4, 4, end=0.5)),
        FeatureStore(Eye(), "another eye").key(FrameSpec(sample_video, 4, 4)),
        FeatureStore(Eye(), "eye", dtype=torch.float32).key(FrameSpec(sample_video, 4, 4)),
    ]
    assert len({base, *different}) == 7


def test_the_identity_of_encoders_is_that_of_their_tensors() -> None:
    model = tiny.model("pool").backbone.encoders
    same, other = tiny.model("pool").backbone.encoders, tiny.model("pool", seed=1).backbone.encoders
    assert module_hash(model) == module_hash(same) != module_hash(other)
    with torch.no_grad():
        next(same.parameters()).view(-1)[0] += 1e-3
    assert module_hash(model) != module_hash(same)
    assert module_hash(model.to(torch.bfloat16)) != module_hash(other)


def test_a_setting_of_an_encoder_is_part_of_its_identity() -> None:
    image = tiny.backbone_settings()["image_encoder"]
    backbones = [
        tiny.model("pool", backbone=tiny.backbone_settings(image_encoder={**image, "layer": layer})).backbone
        for layer in (-2, -1)
    ]
    assert module_hash(backbones[0].encoders) == module_hash(backbones[1].encoders)  # its weights are the same
    assert preprocessing_hash(backbones[0]) != preprocessing_hash(backbones[1])


def of_many_sizes(backbone: Backbone, folder: Path) -> list[FrameSpec]:
    """16 videos and images, of several sizes and lengths."""
    for number in range(16):
        frames = stock.clip(number, count=8, height=48 + number % 3 * 16, width=64).pixels.permute(0, 2, 3, 1).numpy()
        if number % 4 == 3:
            Image.fromarray(frames[0]).save(folder / f"{number}.png")
        else:
            write_video(folder / f"{number}.mp4", frames[: 4 + number % 2 * 4], stock.FPS)
    return [backbone.frame_spec(path) for path in sorted(folder.iterdir())]


@pytest.mark.parametrize("name", ["videogpt_plus", *stock.NAMES])
def test_what_is_stored_of_a_clip_depends_on_its_batch_by_rounding_only(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lm = None if name == "videogpt_plus" else VideoLM.from_pretrained(stock.folder(name), backbone={"frames": 4})
    backbone = tiny.model("pool").backbone if lm is None else lm.model.backbone
    wanted, saliency = of_many_sizes(backbone, tmp_path), backbone.has_saliency
    together, alone = (FeatureStore.of(backbone, None, "float32", saliency) for _ in range(2))
    batches, encoders = [], together.encoders
    together.encoders = lambda videos: batches.append(len(videos)) or encoders(videos)
    monkeypatch.setattr(features, "at_once", lambda *_: 16)
    together.fill(wanted)
    monkeypatch.setattr(features, "at_once", lambda *_: 1)
    alone.fill(wanted)
    assert batches == [16]
    for clip in wanted:
        assert together.key(clip) == alone.key(clip)
        ours, theirs = together.store[together.key(clip)], alone.store[alone.key(clip)]
        assert ours.keys() == theirs.keys() and torch.equal(ours["seconds"], theirs["seconds"])
        for part, values in theirs.items():
            assert ours[part].shape == values.shape and ours[part].dtype == values.dtype
            assert values.numel() == 0 or (ours[part] - values).abs().max() <= 1e-5 * values.abs().max(), part


def test_an_error_in_a_batch_is_that_of_one_clip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = tiny.model("pool").backbone
    wanted = of_many_sizes(backbone, tmp_path)
    wanted[5] = FrameSpec(wanted[5].path, 1, 3)  # InternVideo2 takes four frames at once
    store, told = FeatureStore.of(backbone, None), {}
    monkeypatch.setattr(features, "at_once", lambda *_: 16)
    with pytest.raises(ValueError, match="do not divide into clips of 4"):
        store.fill(wanted)
    assert [clip for clip in wanted if store.find(clip) is not None] == wanted[:5]
    store.fill(wanted, failed=lambda clip, error: told.update({clip: str(error)}))
    assert list(told) == [wanted[5]] and "[3] frames" in told[wanted[5]]
    assert store.store.missing([store.key(clip) for clip in wanted]) == [5]


def test_a_batch_that_does_not_fit_is_encoded_one_by_one(sample_video: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    eye = Eye()

    def narrow(videos: list[Frames]) -> list[dict[str, FeatureGrid]]:
        if len(videos) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return eye(videos)

    store = FeatureStore(narrow, "eye")
    monkeypatch.setattr(features, "at_once", lambda *_: 16)
    store.fill(clips(sample_video))
    assert eye.videos == [16, 8, 16]


def test_a_batch_is_as_large_as_its_frames_are_small(sample_video: Path, tmp_path: Path) -> None:
    paths = [tmp_path / f"{number}.png" for number in range(30)]
    for number, path in enumerate(paths):
        Image.new("RGB", (64, 64), (8 * number, 0, 0)).save(path)
    batches: list[int] = []

    def encoders(videos: list[Frames]) -> list[dict[str, FeatureGrid]]:
        batches.append(len(videos))
        return Eye()(videos)

    store = FeatureStore(encoders, "eye")
    store.fill([FrameSpec(path, 1, 1) for path in paths])
    assert batches == [10, 10, 10]  # 4 MiB on a CPU, 32 bytes for each of a picture's 12 KiB
    batches.clear()
    store.fill([FrameSpec(sample_video, 16, 4), FrameSpec(sample_video, 8, 4), FrameSpec(paths[0], 1, 2)])
    assert batches == [1, 1, 1]


def test_what_cannot_be_read_or_encoded_is_told_and_left_out(sample_video: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"no video")
    wanted = [FrameSpec(sample_video, 2, 4), FrameSpec(broken, 4, 4), FrameSpec(sample_video, 4, 4)]

    def blind(videos: list[Frames]) -> list[dict[str, FeatureGrid]]:
        found = Eye()(videos)
        return found if len(videos[0]) == 8 else [{"image": FeatureGrid(found[0]["image"].values / 0.0)}]

    store = FeatureStore(blind, "eye", tmp_path / "store")
    with pytest.raises(ValueError, match=r"broken\.mp4"):
        store.fill(wanted)
    told: dict[FrameSpec, str] = {}
    store.fill(wanted, failed=lambda clip, error: told.update({clip: str(error)}))
    assert list(told) == wanted[1:] and "broken.mp4" in told[wanted[1]]
    assert "NaN or infinity" in told[wanted[2]] and str(sample_video) in told[wanted[2]]
    assert store.find(wanted[0]) is not None and store.find(wanted[2]) is None


def test_all_that_travels_with_a_grid_is_stored(tmp_path: Path) -> None:
    lm = VideoLM.from_pretrained(stock.folder("qwen3_vl"), backbone={"frames": 4})
    clip = lm.frame_spec(stock.mp4(tmp_path, count=8, fps=4))
    store = FeatureStore.of(lm.model.backbone, tmp_path / "store", "float32")
    store.fill([clip])
    encoded, seconds = store.get(clip, None)
    video = lm.open(clip.path)
    grid, seen = encoded["video"], video.encoder["video"]
    assert torch.equal(grid.values, seen.values) and torch.equal(seconds, video.times.double())
    assert len(grid.extra) == len(seen.extra) > 0
    assert all(torch.equal(one, other) for one, other in zip(grid.extra, seen.extra, strict=True))


def test_what_encoders_attend_to_is_stored_on_request(tmp_path: Path) -> None:
    lm = VideoLM.from_pretrained(stock.folder("llava_onevision"), backbone={"frames": 4})
    clip = lm.frame_spec(stock.mp4(tmp_path, count=8, fps=4))
    with_it, without = (FeatureStore.of(lm.model.backbone, tmp_path / "s", "float8", told) for told in (True, False))
    assert with_it.key(clip) != without.key(clip)
    (seen,) = lm.model.backbone.encode([read_spec(clip)], frozenset({"saliency"}))
    found = with_it.get(clip)[0]["video"].saliency
    assert found is not None and seen["video"].saliency is not None and torch.equal(found, seen["video"].saliency)
    assert without.get(clip)[0]["video"].saliency is None


@pytest.mark.parametrize(("dtype", "most"), [("float32", 0.0), ("float16", 2**-11), ("bfloat16", 2**-8)])
def test_rounding_is_that_of_the_type(dtype: FeatureType, most: float) -> None:
    values = torch.randn(3, 4, 4, 64, generator=torch.Generator().manual_seed(0))
    back = _unpack("x", _pack("x", values, TYPES[dtype]), torch.float32)
    assert ((back - values).abs() <= most * values.abs() + 1e-7 * (most > 0)).all()


def test_float8_errs_by_a_sixteenth_at_most_in_every_channel() -> None:
    values = torch.randn(4, 6, 6, 64, generator=torch.Generator().manual_seed(0))
    values[..., 3] *= 1e4  # some channels of a vision transformer are like that
    values[..., 5] = 0.0
    packed = _pack("x", values.to(torch.bfloat16), torch.float8_e4m3fn)
    assert packed["x"].dtype == torch.float8_e4m3fn and packed["x.scale"].shape == (64,)
    back, values = _unpack("x", packed, None).float(), values.to(torch.bfloat16).float()
    assert _unpack("x", packed, None).dtype == torch.bfloat16
    largest = values.abs().amax((0, 1, 2))
    # half a step of 3 bits, bfloat16's own of 8, and below the smallest normal number half the smallest step
    assert ((back - values).abs() <= values.abs() * (2**-4 + 2**-8) + largest * 2**-10 / 448).all()
    assert (back[..., 5] == 0).all()


def caption_loss(model: VideoModel, dtype: FeatureType, store: Path | None) -> torch.Tensor:
    """The loss of a captioner, with features in memory or in a store that another object filled."""
    unfreeze(model, ["compressor.projectors.*"])
    config = small.run_config(model, "test", objective="compress", features_dtype=dtype, features=store)
    if store is not None:
        small.data_of(model, config, dtype=dtype)
    data = small.data_of(model, config, dtype=dtype)
    if store is not None:
        data.features.encoders = lambda videos: pytest.fail("it was stored")
    return small.learner_of(data)(**small.batch_of(data))["loss"]


def test_losses_from_the_store_are_those_from_pixels(tmp_path: Path) -> None:
    model = tiny.model("langdc", max_soft_tokens=32)
    unfreeze(model, ["compressor.projectors.*"])
    online = small.data_of(model, small.run_config(model, "test", objective="compress", feature_memory=0))
    assert online.online
    wanted = small.learner_of(online)(**small.batch_of(online))["loss"]
    assert torch.allclose(caption_loss(model, "float32", tmp_path / "store"), wanted, atol=1e-6)
    assert torch.allclose(caption_loss(model, "float32", None), wanted, atol=1e-6)
    rounded = [caption_loss(model, dtype, tmp_path / "store") for dtype in ROUNDED]
    assert all(0 < abs(found - wanted) < 0.05 * wanted for found in rounded)
