"""A checkpoint gives back the model that was saved, and refuses whatever is not that model."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForCausalLM

from langdc import checkpoint
from langdc.adapters import adapt
from langdc.backbones.chat import conversation
from langdc.config import LoraConfig, ModelConfig
from langdc.hashing import file_hash
from langdc.language_models import load_language_model
from langdc.model import VideoModel
from langdc.types import VideoBatch
from tests import tiny

LORA = LoraConfig(rank=2, alpha=4, dropout=0.0)


def everything(model: VideoModel) -> dict[str, Tensor]:
    return checkpoint.own_tensors(model, [name for name, _ in model.named_parameters(remove_duplicate=False)])


def save(model: VideoModel, folder: Path, **changes) -> Path:
    settings = {"tensors": everything(model), "info": {"stage": "stage2", "steps": 7}, **changes}
    checkpoint.save(model, folder, **settings)
    return folder


def parts(folder: Path) -> ModelConfig:
    """Settings of a model whose language model is a directory."""
    torch.manual_seed(3)
    load_language_model(tiny.qwen2(tiny.BACKBONE_WIDTH)).save_pretrained(folder)
    return tiny.config("pool", backbone=tiny.backbone_settings(language_model=str(folder)))


def logits(model: VideoModel) -> Tensor:
    """What a model says about a video of noise."""
    with torch.no_grad():
        frames = tiny.frames(0)
        prompt = model.backbone.prompt(conversation("what shape ?"))
        return model(VideoBatch(model.backbone.encode([frames]), [frames.seconds], [prompt], [(0,)])).logits


@pytest.mark.parametrize("compressor", tiny.COMPRESSORS)
def test_there_and_back(compressor: str, tmp_path: Path) -> None:
    model = tiny.model(compressor)
    torch.manual_seed(99)
    found = checkpoint.load(save(model, tmp_path / "run"))
    for name, parameter in model.state_dict().items():
        assert torch.equal(found.state_dict()[name], parameter), name
    assert torch.equal(logits(found), logits(model))
    assert found.config == model.config
    assert not found.training
    assert not any(parameter.requires_grad for parameter in found.parameters())
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["langdc.json", "model.safetensors", "run"]


def test_tied_weights_are_written_once_and_stay_tied(tmp_path: Path) -> None:
    model = tiny.model()
    written = load_file(save(model, tmp_path / "run") / checkpoint.WEIGHTS)
    assert sum(tensor.shape == (len(tiny.tokenizer()), tiny.BACKBONE_WIDTH) for tensor in written.values()) == 1
    assert sum(t.numel() for t in written.values()) == sum(p.numel() for p in model.parameters())
    backbone = checkpoint.load(tmp_path / "run").backbone
    assert backbone.lm_head.weight is backbone.text_model.get_input_embeddings().weight


def test_only_what_was_trained_is_written(tmp_path: Path) -> None:
    model = VideoModel(parts(tmp_path / "part"))
    names = checkpoint.unpublished(model)  # all but the language model
    save(model, tmp_path / "run", tensors=checkpoint.own_tensors(model, names))
    assert sorted(load_file(tmp_path / "run" / checkpoint.WEIGHTS)) == sorted(names)
    found = checkpoint.load(tmp_path / "run")
    for name in ("backbone.projectors", "backbone.language_model"):
        for key, tensor in model.get_submodule(name).state_dict().items():
            assert torch.equal(found.get_submodule(name).state_dict()[key], tensor), key


def test_the_card_says_how_it_was_made(tmp_path: Path) -> None:
    model = VideoModel(parts(tmp_path / "part"))
    card = checkpoint.read_manifest(save(model, tmp_path / "run"))
    assert (card["stage"], card["steps"], card["lora"]) == ("stage2", 7, None)
    assert card["weights_sha256"] == file_hash(tmp_path / "run" / checkpoint.WEIGHTS)
    assert list(card["parts"]) == [str(tmp_path / "part")]
    assert ModelConfig.model_validate(card["model"]) == model.config


def test_lora_there_and_back(tmp_path: Path) -> None:
    model = tiny.model("pool")
    before = set(dict(model.named_parameters()))
    adapt(model.backbone.text_model, LORA)
    added = [name for name, _ in model.named_parameters() if "lora_" in name]
    assert len(added) == 3 * 7 * 2
    assert logits(model).equal(logits(tiny.model("pool")))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in added:
                parameter.copy_(torch.randn_like(parameter) * 0.1)
    assert not torch.allclose(logits(model), logits(tiny.model("pool")), atol=1e-3)
    found = checkpoint.load(save(model, tmp_path / "run", lora=LORA))
    assert torch.equal(logits(found), logits(model))
    again, tensors = checkpoint.start(found.config, tmp_path / "run")
    assert torch.equal(logits(again.eval()), logits(model))
    assert set(added) <= set(tensors)
    assert len(before) + len(added) == len(dict(again.named_parameters()))


def test_another_architecture_is_refused_by_name(tmp_path: Path) -> None:
    run = save(tiny.model(), tmp_path / "run")
    wider = tiny.config(captioner=tiny.qwen2(40))
    with pytest.raises(ValueError, match="of another shape") as error:
        checkpoint.start(wider, run)
    words = len(tiny.tokenizer())
    table = "compressor.captioner.language_model.model.embed_tokens.weight"
    assert f"{table}: ({words}, 32), not ({words}, 40)" in str(error.value)
    with pytest.raises(ValueError, match=r"unknown: compressor\.captioner\.language_model"):
        checkpoint.start(tiny.config("pool"), run)
    assert len(str(error.value).splitlines()) < 25


def test_a_part_that_changed_is_refused(tmp_path: Path) -> None:
    model = VideoModel(parts(tmp_path / "part"))
    run = save(model, tmp_path / "run", tensors=checkpoint.own_tensors(model, checkpoint.unpublished(model)))
    checkpoint.load(run)
    other = AutoModelForCausalLM.from_pretrained(tmp_path / "part")
    with torch.no_grad():
        other.model.norm.weight += 1
    other.save_pretrained(tmp_path / "part")
    with pytest.raises(ValueError, match=f"trained on other weights than those now at: {tmp_path / 'part'}"):
        checkpoint.load(run)


def test_a_file_that_is_not_the_one_saved_is_refused(tmp_path: Path) -> None:
    model = tiny.model("pool")
    run = save(model, tmp_path / "run")
    tensors = load_file(run / checkpoint.WEIGHTS)
    tensors.pop("backbone.projectors.image.0.weight")
    save_file(tensors, run / checkpoint.WEIGHTS)
    with pytest.raises(ValueError, match=r"model\.safetensors is not the file that langdc\.json describes"):
        checkpoint.load(run)
    (run / checkpoint.WEIGHTS).unlink()
    with pytest.raises(ValueError, match=r"model\.safetensors"):
        checkpoint.load(run)


def test_directories_without_a_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no checkpoint directory"):
        checkpoint.load(tmp_path / "nothing")
    with pytest.raises(ValueError, match=r"holds no LangDC checkpoint \(no langdc.json\)"):
        checkpoint.load(tmp_path)
    with pytest.raises(ValueError, match="holds no LangDC checkpoint"):
        checkpoint.start(tiny.config("pool"), tmp_path)


def test_saving_again_replaces_and_keeps_other_files(tmp_path: Path) -> None:
    first, second = tiny.model("pool"), tiny.model("pool", seed=1)
    save(first, tmp_path / "run")
    (tmp_path / "run" / "log.jsonl").write_text("{}\n")
    save(second, tmp_path / "run")
    assert torch.equal(logits(checkpoint.load(tmp_path / "run")), logits(second))
    assert (tmp_path / "run" / "log.jsonl").read_text() == "{}\n"


def test_a_save_that_breaks_off_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny.model("pool")
    run = save(model, tmp_path / "run")

    def broken(*_) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint, "file_hash", broken)
    with pytest.raises(KeyboardInterrupt):
        save(tiny.model("pool", seed=1), run)
    monkeypatch.undo()
    assert torch.equal(logits(checkpoint.load(run)), logits(model))
    save(tiny.model("pool", seed=1), run)
    assert not run.with_name("run.partial").exists()


def test_cards_are_plain_json(tmp_path: Path) -> None:
    run = save(tiny.model("pool"), tmp_path / "run")
    assert json.loads((run / checkpoint.MANIFEST).read_text())["model"]["compressor"]["name"] == "pool"


# ---- a start


class Drawn(TorchDispatchMode):
    """How many tensors are drawn meanwhile."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        draws = func.overloadpacket.__name__ in ("normal_", "uniform_", "randn", "rand")
        self.count += draws and not found.is_meta  # on the meta device nothing is computed
        return found


@pytest.mark.parametrize("compressor", ["langdc", "pool"])
def test_what_files_hold_is_not_drawn_first(compressor: str, tmp_path: Path) -> None:
    run = save(tiny.model(compressor), tmp_path / "run")
    state = torch.get_rng_state()
    with Drawn() as drawn:
        checkpoint.load(run)
        checkpoint.open_model("sample:langdc")
        checkpoint.open_model("tiny:qwen2_5_vl")
    assert drawn.count == 0 and torch.equal(torch.get_rng_state(), state)
    with Drawn() as drawn:
        model, _ = checkpoint.start(checkpoint.load("sample:langdc").config, None)
    files = tuple(f"{name}." for name in checkpoint.published(model))
    assert drawn.count == sum(not name.startswith(files) for name, _ in model.named_parameters()) == 21


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_checkpoint_is_read_in_the_type_that_is_asked(tmp_path: Path, dtype: torch.dtype) -> None:
    config = parts(tmp_path / "part")
    run = save(VideoModel(config), tmp_path / "run")
    made: list[torch.dtype] = []
    watch = register_module_parameter_registration_hook(
        lambda _, __, weight: made.append(weight.dtype) if weight is not None else None
    )
    try:
        found = checkpoint.load(run, dtype=dtype)
        stock = checkpoint.open_model("tiny:qwen2_5_vl", {"dtype": "float32"}, dtype=dtype)
        sample = checkpoint.open_model("sample:langdc", dtype=dtype)
    finally:
        watch.remove()
    assert len(made) > 200 and set(made) == {dtype}
    exact = checkpoint.load(run)
    for name, weight in exact.named_parameters():
        assert torch.equal(found.get_parameter(name), weight.to(dtype)), name
    assert torch.get_default_dtype() == torch.float32 == logits(exact).dtype
    for model in (found, sample, stock):
        assert {weight.dtype for weight in model.parameters()} == {dtype}
    torch.testing.assert_close(logits(found).float(), logits(exact), atol=0.05, rtol=0.05)
