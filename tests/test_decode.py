"""A step of constant shapes can be compiled whole, and recorded as a graph; it writes what the eager step writes."""

import pytest
import torch
from torch import Tensor

from langdc import decode
from langdc.captioner import Captioner, _padded
from tests import tiny

STEPS = 6


def steps_of(captioner: Captioner, lengths: list[int]) -> decode._Steps:
    """Steps of a captioner after its prompts, of which some are padded."""
    visual = [each.to(next(captioner.parameters())) for each in tiny.visual(lengths)]
    rows, _ = captioner._rows(visual, [torch.empty(0, dtype=torch.long, device=visual[0].device)] * len(visual))
    embeds, mask = _padded(rows, "left")
    found = decode._Steps(captioner.language_model, embeds, 64, STEPS + 1, captioner.layer, captioner.end, None)
    found.read(embeds, mask)
    return found


def written(steps: decode._Steps) -> tuple[Tensor, Tensor]:
    return steps.ids.clone(), steps.states.clone()


@pytest.mark.parametrize("layer", [1, 3])
@torch.no_grad()
def test_a_step_is_one_compiled_graph_and_is_not_compiled_again(layer: int):
    captioner = tiny.captioner(layer=layer)
    eager, compiled = (steps_of(captioner, [7, 3]) for _ in range(2))
    torch._dynamo.reset()
    counters = torch._dynamo.utils.counters
    counters.clear()
    run = torch.compile(compiled.run, backend="aot_eager", fullgraph=True, dynamic=False)
    with compiled.ready():
        for _ in range(STEPS):
            run()
    assert counters["stats"]["unique_graphs"] == 1 and not counters["graph_break"]
    for _ in range(STEPS):
        eager.advance()
    for one, other in zip(written(eager), written(compiled), strict=True):
        torch.testing.assert_close(one, other)


@torch.no_grad()
def test_hidden_states_are_those_of_the_whole_model():
    captioner = tiny.captioner(layer=2)
    steps = steps_of(captioner, [5])
    for _ in range(3):
        steps.advance()
    visual = tiny.visual([5])
    (states,) = captioner.read(visual, [steps.ids[0, :3]])
    torch.testing.assert_close(steps.states[0, 1:4], states, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_flash_attention_is_for_prompts_alone():
    """Steps have a mask, which flash-attn does not take; the model's own choice is back afterwards."""
    captioner = tiny.captioner()
    steps = steps_of(captioner, [5])
    captioner.language_model.config._attn_implementation = "flash_attention_2"
    steps.advance()
    assert captioner.language_model.config._attn_implementation == "flash_attention_2"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("compiled", [False, True])
@torch.no_grad()
def test_a_captured_step_writes_what_an_eager_one_writes(compiled: bool):
    captioner = tiny.captioner(compiled=compiled, max_soft_tokens=STEPS).cuda()
    captioner.end = [-1]
    eager = steps_of(captioner, [7, 3])
    for _ in range(STEPS):
        eager.advance()
    visual = [each.cuda() for each in tiny.visual([7, 3])]
    for _ in range(2):  # the second one replays
        found = captioner.write(visual)
        assert torch.equal(torch.stack(found.ids), eager.ids[:, :STEPS])
    (graphs,) = [kept for model, kept in decode._graphs.items() if model is captioner.language_model]
    assert all(steps.graph is not None for steps in graphs.values())
