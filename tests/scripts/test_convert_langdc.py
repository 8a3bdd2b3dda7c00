"""LangDC's release, in the published layout with tiny random weights, becomes a checkpoint that answers."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from langdc import VideoLM, checkpoint
from langdc.video import write_video
from scripts.convert_langdc import main

RELEASE = Path(__file__).parents[1] / "golden/langdc_ckpt"
EXTRA = "langdc_lora/non_lora_trainables.bin"
PREFIX = "base_model.model.model."
KINDS = ("weight", "bias")
FORWARD = (
    ("compressor.captioner.language_model.", "model.cap_light_llm."),
    ("compressor.projectors.image.", "model.cap_image_mm_projector."),
    ("compressor.projectors.video.", "model.cap_mm_projector."),
    ("compressor.post_projector.", "model.llm_projector."),
    ("backbone.projectors.image.", "model.image_mm_projector."),
    ("backbone.projectors.video.", "model.mm_projector."),
    ("backbone.encoders.video.model.", "model.vision_tower.vision_encoder."),
    ("backbone.encoders.image.model.", "model.image_vision_tower.vision_tower.vision_model."),
    ("backbone.language_model.", ""),
)


def run(*words: object) -> int:
    return main([*map(str, words)])


def quick(release: Path, out: Path, *words: object) -> int:
    return run(release, out, "--heads", 4, "--no-verify-save", *words)


def named(folder: Path) -> dict[str, Tensor]:
    return dict(checkpoint.load(folder).named_parameters(remove_duplicate=False))


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    return Path(shutil.copytree(RELEASE, tmp_path / "copy"))


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("langdc") / "out"
    assert quick(RELEASE / "langdc_lora", out, "--branch", "dual", "--max-soft-tokens", 4) == 0
    return out


def change(file: Path, how: Callable[[dict[str, Tensor]], object]) -> None:
    tensors = load_file(file) if file.suffix == ".safetensors" else torch.load(file, weights_only=True)
    how(tensors)
    if file.suffix == ".safetensors":
        save_file(tensors, file, {"format": "pt"})
    else:
        torch.save(tensors, file)


def test_it_answers_from_pixels_also_after_it_was_moved(converted: Path, tmp_path: Path) -> None:
    moved = Path(shutil.copytree(converted, tmp_path / "elsewhere" / "moved"))
    dice = torch.Generator().manual_seed(0)
    write_video(tmp_path / "x.mp4", torch.randint(0, 256, (16, 64, 64, 3), dtype=torch.uint8, generator=dice), 8)
    answer = VideoLM.from_pretrained(moved).open(tmp_path / "x.mp4").ask("What is it?", max_new_tokens=3)
    assert len(answer.captions or []) == 4
    assert answer.tokens >= 16 * (36 + 16)
    prompt = checkpoint.load(moved).backbone.prompt([{"role": "user", "content": [{"type": "video"}]}])
    text = "<|im_start|>system\nYou are a helpful AI assistant.<|im_end|><|im_start|>user\n"
    assert checkpoint.load(moved).backbone.tokenizer.decode(prompt.ids[: prompt.slots[0].position]) == text


def test_the_report_accounts_for_every_tensor_and_a_fresh_process_agrees(tmp_path: Path, capsys) -> None:
    assert run(RELEASE, tmp_path / "out", "--heads", 4) == 0
    said = capsys.readouterr().out
    assert "219 tensors taken, 68 dropped, none missing" in said
    assert "loaded again, the same 220 tensors" in said  # the captioner's head is tied
    report = json.loads((tmp_path / "out/conversion.json").read_text())
    assert len(report["taken"]) == 219 and len(report["dropped"]) == 68


def test_a_release_with_all_weights_in_one_gives_the_same_model(converted: Path, tmp_path: Path) -> None:
    place = tmp_path / "whole"
    place.mkdir()
    settings = json.loads((RELEASE / "langdc_lora/config.json").read_text())
    (place / "config.json").write_text(json.dumps(settings))
    tensors = {}
    for name, tensor in named(converted).items():
        new = next(new + name.removeprefix(old) for old, new in FORWARD if name.startswith(old))
        tensors[new] = tensor.half().contiguous().clone()
    tensors |= {
        "model.vision_tower.vision_proj.weight": torch.ones(2),
        "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(2),
    }
    save_file(tensors, place / "model.safetensors")
    parts = [
        "--language",
        RELEASE / "vqa_base",
        "--captioner",
        RELEASE / "cap_light_llm",
        "--image-encoder",
        RELEASE / "clip-tiny",
    ]
    assert quick(place, tmp_path / "out", "--branch", "dual", *parts) == 0
    found = named(tmp_path / "out")
    assert all(torch.equal(found[name], tensor) for name, tensor in named(converted).items())


def renamed(file: Path, old: str, new: str) -> None:
    """Give every tensor of a file that begins with `old` another beginning."""

    def how(tensors: dict[str, Tensor]) -> None:
        for name in [name for name in tensors if name.startswith(old)]:
            tensors[new + name.removeprefix(old)] = tensors.pop(name)

    change(file, how)


def as_bin(file: Path, name: str = "pytorch_model.bin") -> None:
    torch.save(load_file(file), file.with_name(name))
    file.unlink()


def in_shards(file: Path) -> None:
    tensors, files = load_file(file), {}
    for number, half in enumerate((sorted(tensors)[::2], sorted(tensors)[1::2]), 1):
        part = f"model-0000{number}-of-00002.safetensors"
        save_file({name: tensors[name] for name in half}, file.with_name(part), {"format": "pt"})
        files |= dict.fromkeys(half, part)
    file.with_name("model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))
    file.unlink()


def other_files(copy: Path) -> None:
    in_shards(copy / "vqa_base/model.safetensors")
    as_bin(copy / "cap_light_llm/model.safetensors")
    as_bin(copy / "langdc_lora/adapter_model.safetensors", "adapter_model.bin")


def other_names(copy: Path) -> None:
    renamed(copy / "clip-tiny/model.safetensors", "vision_model.", "")  # as transformers 5 writes them
    renamed(copy / EXTRA, PREFIX, "model.model.")
    renamed(copy / "cap_light_llm/mm_projector.bin", "model.", "")
    video = copy / "InternVideo2-tiny.pt"
    torch.save(torch.load(video, weights_only=True)["module"], video)


def names_of_trainers(copy: Path) -> None:
    renamed(copy / EXTRA, PREFIX, "model.")
    video = copy / "InternVideo2-tiny.pt"
    tensors = torch.load(video, weights_only=True)["module"]
    torch.save({"model": {f"module.{name}": tensor for name, tensor in tensors.items()}, "step": 7}, video)


@pytest.mark.parametrize("how", [other_files, other_names, names_of_trainers])
def test_other_layouts_of_the_same_weights_give_the_same_model(
    converted: Path, copy: Path, tmp_path: Path, how: Callable[[Path], None]
) -> None:
    how(copy)
    assert quick(copy, tmp_path / "out", "--branch", "dual") == 0
    found = named(tmp_path / "out")
    assert all(torch.equal(found[name], tensor) for name, tensor in named(converted).items())


@pytest.mark.parametrize(
    ("stated", "end", "said"),
    [
        ({"eos_token_id": 67, "pad_token_id": 256}, [67], [67]),
        ({"eos_token_id": [258, 256], "pad_token_id": 256}, [256, 258], [258]),
        ({"eos_token_id": [258, 256], "pad_token_id": 258}, [256, 258], [256]),
        ({"eos_token_id": 256, "pad_token_id": 256}, [256], []),
        ({"eos_token_id": 67}, [67], [67]),
        (None, [258], [258]),
    ],
)
def test_captions_end_as_the_captioner_says_and_padding_is_no_token(
    copy: Path, tmp_path: Path, stated: dict | None, end: list[int], said: list[int]
) -> None:
    """An end that is not the padding is one of the states of a caption: see tests/golden/test_langdc.py."""
    file = copy / "cap_light_llm/generation_config.json"
    file.unlink() if stated is None else file.write_text(json.dumps(stated))
    assert quick(copy, tmp_path / "out") == 0
    captioner = checkpoint.load(tmp_path / "out").compressor.captioner
    assert captioner.end == end
    assert [number for number in end if number != captioner.pad] == said


def test_projectors_of_another_depth_and_a_captioner_with_a_head_of_its_own(copy: Path, tmp_path: Path) -> None:
    def deeper(tensors: dict[str, Tensor]) -> None:
        for name in [name for name in tensors if ".cap_" in name and ".2." in name]:
            tensors[name.replace(".2.", ".4.")] = tensors[name] + 1
        tensors |= {f"{PREFIX}llm_projector.0.{kind}": tensors[f"{PREFIX}llm_projector.{kind}"] for kind in KINDS}
        for kind, shape in zip(KINDS, ((48, 48), (48,)), strict=True):
            tensors[f"{PREFIX}llm_projector.2.{kind}"] = torch.ones(shape)
            del tensors[f"{PREFIX}llm_projector.{kind}"]

    change(copy / EXTRA, deeper)
    (copy / "cap_light_llm/mm_projector.bin").unlink()
    head = torch.arange(300 * 32).view(300, 32) / 9600
    change(copy / "cap_light_llm/model.safetensors", lambda t: t.update({"lm_head.weight": head}))
    settings(copy / "cap_light_llm/config.json", tie_word_embeddings=False)
    settings(
        copy / "langdc_lora/config.json",
        mm_projector_type="mlp3x_gelu",
        image_mm_projector_type="mlp3x_gelu",
        llm_projector_type="mlp2x_gelu",
        hidden_state_layer=-4,
    )
    assert quick(copy, tmp_path / "out") == 0
    model = checkpoint.load(tmp_path / "out")
    assert torch.equal(model.compressor.captioner.language_model.lm_head.weight, head.half().float())
    assert torch.equal(model.get_parameter("compressor.post_projector.2.weight"), torch.ones(48, 48))
    assert len(dict(model.compressor.projectors["image"].named_parameters())) == 6
    assert model.compressor.captioner.layer == -4


def test_a_captioner_that_was_trained_with_the_adapter_is_taken_from_beside_it(copy: Path, tmp_path: Path) -> None:
    norm = torch.full((32,), 3.0)
    change(copy / EXTRA, lambda t: t.update({f"{PREFIX}cap_light_llm.model.norm.weight": norm}))
    assert quick(copy, tmp_path / "out") == 0
    assert torch.equal(named(tmp_path / "out")["compressor.captioner.language_model.model.norm.weight"], norm)


def settings(file: Path, **changes: object) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def test_parts_may_lie_elsewhere_and_be_converted_already(converted: Path, copy: Path, tmp_path: Path) -> None:
    lora = Path(shutil.move(copy / "langdc_lora", tmp_path / "lora" / "x"))
    moved = Path(shutil.move(copy, tmp_path / "far" / "away"))
    parts = [
        "--language", moved / "vqa_base", "--captioner", moved / "cap_light_llm", "--image-encoder",
        moved / "clip-tiny", "--video-encoder", converted / "video_encoder", "--branch", "dual",
    ]  # fmt: skip
    assert run(lora, tmp_path / "out", "--no-verify-save", *parts) == 0
    found = named(tmp_path / "out")
    assert all(torch.equal(found[name], tensor) for name, tensor in named(converted).items())


def test_a_part_that_is_not_found_is_named_with_its_option(copy: Path, tmp_path: Path, capsys) -> None:
    away = tmp_path / "far" / "away"
    away.mkdir(parents=True)
    for part, option in (
        ("clip-tiny", "--image-encoder"),
        ("InternVideo2-tiny.pt", "--video-encoder"),
        ("cap_light_llm", "--captioner"),
        ("vqa_base", "--language"),
    ):
        (copy / part).rename(away / part)
        assert quick(copy, tmp_path / "out") == 2
        said = capsys.readouterr().err
        assert option in said and part in said
        (away / part).rename(copy / part)


def test_projectors_that_only_another_file_holds(copy: Path, tmp_path: Path, capsys) -> None:
    saved = {}
    change(copy / EXTRA, lambda t: saved.update({n: t.pop(n) for n in list(t) if "llm_projector" not in n}))
    assert quick(copy, tmp_path / "cap", "--branch", "cap") == 0
    assert "captions alone" in capsys.readouterr().out
    assert len(checkpoint.load(tmp_path / "cap").untrained) == 8
    assert quick(copy, tmp_path / "dual", "--branch", "dual") == 2
    assert "8 missing: image_mm_projector.0.bias" in capsys.readouterr().err
    torch.save(saved, tmp_path / "projectors.bin")
    assert quick(copy, tmp_path / "dual", "--branch", "dual", "--projectors", tmp_path / "projectors.bin") == 0


@pytest.mark.parametrize(
    ("file", "how", "said"),
    [
        (EXTRA, lambda t: t.pop(f"{PREFIX}llm_projector.bias"), "1 missing: llm_projector.bias"),
        (EXTRA, lambda t: t.pop(f"{PREFIX}mm_projector.2.bias"), "1 missing: mm_projector.2.bias"),
        (EXTRA, lambda t: t.update({f"{PREFIX}x.weight": torch.ones(1)}), "1 tensors of no part known here: model.x.w"),
        (EXTRA, lambda t: t.update({f"{PREFIX}llm_projector.bias": torch.ones(3)}), "(3,), not (48,)"),
        ("langdc_lora/adapter_model.safetensors", lambda t: t.pop(min(t)), "1 missing: base_model.model.model.la"),
        ("langdc_lora/adapter_model.safetensors", lambda t: t.update(x=torch.ones(1)), "1 unknown: x"),
        ("vqa_base/model.safetensors", lambda t: t.pop("model.norm.weight"), "1 missing: model.norm.weight"),
        ("cap_light_llm/model.safetensors", lambda t: t.update(x=torch.ones(1)), "make up the captioner"),
        ("clip-tiny/model.safetensors", lambda t: t.pop(min(t)), "make up the image encoder"),
    ],
)  # fmt: skip
def test_what_is_missing_unknown_or_misshapen_is_named(copy: Path, tmp_path: Path, capsys, file, how, said) -> None:
    change(copy / file, how)
    assert quick(copy, tmp_path / "out") == 2
    assert said in capsys.readouterr().err
    assert not list(tmp_path.glob("out*"))


@pytest.mark.parametrize("file", [EXTRA, "vqa_base/model.safetensors", "langdc_lora/adapter_model.safetensors"])
def test_a_file_that_is_cut_off_is_told(copy: Path, tmp_path: Path, capsys, file: str) -> None:
    whole = (copy / file).read_bytes()
    (copy / file).write_bytes(whole[: len(whole) // 2])
    assert quick(copy, tmp_path / "out") == 2
    assert "Copy it again" in capsys.readouterr().err


def test_a_tokenizer_with_more_tokens_than_embeddings_is_refused(copy: Path, tmp_path: Path, capsys) -> None:
    def cut(tensors: dict[str, Tensor]) -> None:
        for name in ("lm_head.weight", "model.embed_tokens.weight"):
            tensors[name] = tensors[name][:250].clone()

    change(copy / "vqa_base/model.safetensors", cut)
    assert quick(copy, tmp_path / "out") == 2
    assert "has 260 tokens, but there are embeddings of 250" in capsys.readouterr().err
