"""A step of constant shapes can be compiled whole, and recorded as a graph; it writes what the eager step writes."""

import gc
import re
import shutil
from collections import Counter
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pytest
import torch
from torch import Tensor, nn
from torch._inductor.utils import run_and_get_code
from torch.utils._python_dispatch import TorchDispatchMode

from langdc import decode
from langdc.backbones import backbones
from langdc.backbones.inputs import read_together
from langdc.captioner import Captioner, _padded
from langdc.interfaces import Backbone
from langdc.steps import Steps, _graphs, steps_for
from tests import stock, tiny

STEPS = 6


def captioned(captioner: Captioner, lengths: list[int]) -> Steps:
    """Steps of a captioner after its prompts, of which some are padded."""
    visual = [each.to(next(captioner.parameters())) for each in tiny.visual(lengths)]
    rows, _ = captioner._rows(visual, [torch.empty(0, dtype=torch.long, device=visual[0].device)] * len(visual))
    embeds, mask = _padded(rows, "left")
    model: Any = captioner.language_model
    reading = decode._read(model, embeds, mask, captioner.layer)
    ends, layer = captioner.end, captioner.layer
    found = Steps(model.model, model.lm_head, [reading], 64, STEPS + 1, ends, None, 1.0, layer)
    found.begin([reading])
    return found


def replied(backbone: Backbone, penalty: float = 1.0) -> Steps:
    """Steps of a backbone after two prompts of text, one of them padded."""
    texts = [backbone.prompt(prompts) for prompts in ([{"role": "user", "content": text}] for text in ("a b c", "d"))]
    with torch.no_grad():
        reading = read_together(backbone, texts, [[], []])
    found = Steps(backbone.text_model, backbone.lm_head, [reading], 64, STEPS + 1, [], None, penalty, None)
    found.begin([reading])
    return found


def eager(steps: Steps) -> tuple[Tensor, ...]:
    for _ in range(STEPS):
        steps.advance()
    return written(steps)


def written(steps: Steps) -> tuple[Tensor, ...]:
    return tuple(kept.clone() for kept in (steps.ids, steps.states) if kept is not None)


def compiled(steps: Steps) -> tuple[Tensor, ...]:
    """What a step that dynamo took whole writes; it must do so at once, and never again."""
    torch._dynamo.reset()
    counters = torch._dynamo.utils.counters
    counters.clear()
    run = torch.compile(steps.run, backend="aot_eager", fullgraph=True, dynamic=False)
    with steps.ready():
        for _ in range(STEPS):
            run()
    assert counters["stats"]["unique_graphs"] == 1 and not counters["graph_break"]
    return written(steps)


class Calls(TorchDispatchMode):
    """Counts calls that compute something, while none of the given modules runs."""

    def __init__(self, *modules: Any) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()
        self.depth = 0
        for module in modules:
            module.register_forward_pre_hook(lambda *_: self._enter(1))
            module.register_forward_hook(lambda *_: self._enter(-1))

    def _enter(self, by: int) -> None:
        self.depth += by

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        view = any(found.alias_info is not None and not found.alias_info.is_write for found in func._schema.returns)
        if not self.depth and not view:
            self.calls[func.__name__] += 1
        return func(*args, **(kwargs or {}))


def outside(steps: Steps) -> Counter[str]:
    model: Any = steps.text_model
    parts = [model.get_input_embeddings(), model.rotary_emb, *model.layers, model.norm, steps.lm_head]
    with steps.ready(), torch.no_grad(), Calls(*parts) as seen:
        steps.run()
    return seen.calls


BACKBONES = (*stock.KEYED, "videogpt_plus")
# one of each kind of text model and of positions
COMPILED = ["qwen3_vl", *(pytest.param(name, marks=pytest.mark.slow) for name in ("internvl", "videogpt_plus"))]


@pytest.fixture(params=BACKBONES)
def backbone(request) -> Backbone:
    if request.param == "videogpt_plus":
        return tiny.model("pool").backbone
    return backbones.build(request.param, source=stock.folder(request.param))


@pytest.mark.parametrize("layer", [1, 3])
@torch.no_grad()
def test_a_step_of_the_captioner_is_one_compiled_graph(layer: int) -> None:
    one, other = (captioned(tiny.captioner(layer=layer), [7, 3]) for _ in range(2))
    for expected, found in zip(eager(one), compiled(other), strict=True):
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("backbone", COMPILED, indirect=True)
@torch.no_grad()
def test_a_step_of_a_backbone_is_one_compiled_graph(backbone: Backbone) -> None:
    (expected,), (found,) = eager(replied(backbone)), compiled(replied(backbone))
    assert torch.equal(found, expected)


def test_a_step_makes_few_calls_of_its_own(backbone: Backbone) -> None:
    """Beside the modules of the model: masks, places, positions, stop flags, the choice of the token."""
    for steps in (replied(backbone), captioned(tiny.captioner(), [7, 3])):
        calls = outside(steps)
        assert 0 < calls.total() <= 10, calls


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor compiles for a CPU with g++, which is not here")
@torch.no_grad()
def test_a_compiled_step_is_a_third_of_the_calls() -> None:
    """162 eager calls of three layers are 51: 23 fused kernels, and 28 products."""
    eager, compiled = (captioned(tiny.captioner(), [7, 3]) for _ in range(2))
    with eager.ready(), Calls() as seen:
        eager.run()
    with compiled.ready():
        _, (code,) = run_and_get_code(torch.compile(compiled.run, fullgraph=True, dynamic=False))
    kernels = re.findall(
        r"^ +(?:cpp_fused|extern_kernels|aten|torch\.ops)[\w.]*\(", code[code.index("def call(") :], re.M
    )
    assert 0 < 3 * len(kernels) <= seen.calls.total()


@torch.no_grad()
def test_hidden_states_are_those_of_the_whole_model():
    captioner = tiny.captioner(layer=2)
    steps = captioned(captioner, [5])
    for _ in range(3):
        steps.advance()
    visual = tiny.visual([5])
    (states,) = captioner.read(visual, [steps.ids[0, :3]]).states
    torch.testing.assert_close(written(steps)[1][0, 1:4], states, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_flash_attention_is_for_prompts_alone():
    """Steps have a mask, which flash-attn does not take; the model's own choice is back afterwards."""
    captioner = tiny.captioner()
    steps = captioned(captioner, [5])
    captioner.language_model.config._attn_implementation = "flash_attention_2"
    steps.advance()
    assert captioner.language_model.config._attn_implementation == "flash_attention_2"


class Recorded(Steps):
    """Steps that can be captured, or not, without a card."""

    works, bytes = True, 1  # pyright: ignore[reportAssignmentType]

    def __init__(self, *parts: Any) -> None:
        self.text_model, self.lm_head, self.embed = *parts[:2], parts[0]["embed"]

    def capture(self, compiled: bool) -> None:
        if not self.works:
            raise RuntimeError("no graph")


@pytest.mark.parametrize("works", [True, False])
def test_kept_graphs_do_not_keep_their_model(monkeypatch: pytest.MonkeyPatch, works: bool) -> None:
    """The model of an evaluation's next group needs the memory. Steps without a graph shrink, so none are kept."""
    monkeypatch.setattr("langdc.steps.Steps", Recorded)
    monkeypatch.setattr(Recorded, "works", works)
    layers = [SimpleNamespace(keys=torch.empty(1, 1, 3, 1))]
    logits: Any = MagicMock(device=torch.device("cuda"), dtype=torch.float32)
    reading: Any = SimpleNamespace(cache=SimpleNamespace(layers=layers), logits=logits)
    model, head, before = nn.ModuleDict({"embed": nn.Embedding(2, 2)}).eval(), nn.Linear(2, 2), len(_graphs)
    first, again = (steps_for(model, head, [reading], [], 2, None, 1.0, None, False) for _ in range(2))
    assert (first is again) == works and len(_graphs) == before + 1
    if works:  # else the error that was logged holds it for a while
        del model
        gc.collect()
        assert len(_graphs) == before


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("compiled", [False, True])
@torch.no_grad()
def test_a_captured_step_writes_what_an_eager_one_writes(compiled: bool):
    captioner = tiny.captioner(compiled=compiled, max_soft_tokens=STEPS).cuda()
    captioner.end = [-1]
    expected = eager(captioned(captioner, [7, 3]))[0]
    visual = [each.cuda() for each in tiny.visual([7, 3])]
    for _ in range(2):  # the second one replays
        found = captioner.write(visual)
        assert torch.equal(torch.stack(found.ids), expected[:, :STEPS])
    assert all(_graphs[captioner.language_model.model].values())


@pytest.mark.gpu
@torch.no_grad()
def test_captured_replies_are_the_eager_ones(backbone: Backbone):
    backbone.cuda()
    expected = eager(replied(backbone))[0]
    prompts = [backbone.prompt([{"role": "user", "content": text}]) for text in ("a b c", "d")]
    for _ in range(2):
        reading = read_together(backbone, prompts, [[], []])
        assert torch.equal(decode.write(backbone.text_model, backbone.lm_head, [reading], [], STEPS + 1).ids, expected)
    assert all(_graphs[backbone.text_model].values())
