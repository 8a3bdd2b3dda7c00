"""Which attention kernel each part gets in a phase."""

import pytest

from langdc.config import StageConfig, check
from langdc.training import stages
from tests import tiny

FLASH = "flash_attention_2"


def config(**changes) -> StageConfig:
    phases = [
        {"name": name, "objective": name, "data": ["x.jsonl"], "trainable": ["*"], "steps": 1}
        for name in ("caption", "answer")
    ]
    model = tiny.config("langdc").model_dump(mode="json")
    return check(StageConfig, {"stage": "stage2", "model": model, "phases": phases, **changes}, "test")


def kernels(monkeypatch: pytest.MonkeyPatch, phase: int, settings: StageConfig) -> dict[str, str]:
    """What the language models of a small model are told to use, where flash-attn is at hand."""
    model = tiny.model("langdc")
    told = {}
    for name, part in (
        ("backbone", model.backbone.language_model),
        ("captioner", model.captioner.captioner.language_model),
    ):
        part.config._attn_implementation = "eager"
        monkeypatch.setattr(part, "set_attn_implementation", lambda kernel, name=name: told.update({name: kernel}))
        monkeypatch.setattr(part.base_model, "set_attn_implementation", lambda kernel: None)
    monkeypatch.setattr(stages, "fastest_attention", lambda half: (FLASH, "there") if half else ("sdpa", "float32"))
    stages._apply(model, settings.phases[phase], settings)
    return told


def test_auto_takes_flash_attn_for_the_captioner_that_learns_and_says_which(monkeypatch) -> None:
    half, said = config(attention="auto", precision="bfloat16"), []
    monkeypatch.setattr(stages.logger, "info", lambda text, *values: said.append(text % values))
    assert kernels(monkeypatch, 0, half) == {"backbone": "sdpa", "captioner": FLASH}
    assert kernels(monkeypatch, 1, half) == {"backbone": "sdpa", "captioner": "sdpa"}
    assert kernels(monkeypatch, 0, config(attention="auto")) == {"backbone": "sdpa", "captioner": "sdpa"}
    assert said == [
        "attention: flash_attention_2 (there).",
        "attention: sdpa (several questions about a video need their own mask).",
        "attention: sdpa (float32).",
    ]


def test_flash_attn_is_refused_where_it_would_overlook_the_mask(monkeypatch) -> None:
    with pytest.raises(ValueError, match=r"cannot be used in phase 'answer'.*Use auto"):
        kernels(monkeypatch, 1, config(attention=FLASH, precision="bfloat16"))
