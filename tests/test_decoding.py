"""Greedy decoding writes what the stock `generate` writes, and its states are those of a plain forward pass."""

import pytest
import torch

from langdc.decoding import greedy
from langdc.language_models import load_language_model
from tests import tiny


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(3)
    return load_language_model(tiny.qwen2()).eval()


@pytest.mark.parametrize("most", [1, 5, 8, 16])
def test_the_same_ids_as_stock_generation(model, most: int) -> None:
    embeds = torch.stack(tiny.visual([6, 6, 6]))
    mask = torch.ones(3, 6, dtype=torch.long)
    stock = model.generate(
        inputs_embeds=embeds, attention_mask=mask, max_new_tokens=most, do_sample=False, eos_token_id=-1, pad_token_id=0
    )
    found = greedy(model, embeds, mask, [-1], most, layer=-1)
    assert torch.stack(found.ids).tolist() == stock.tolist()


@pytest.mark.parametrize("layer", [0, 1, 3, -1])
def test_states_are_those_of_one_forward_pass(model, layer: int) -> None:
    prompt = tiny.visual([6])[0]
    found = greedy(model, prompt[None], torch.ones(1, 6, dtype=torch.long), [-1], 5, layer)
    whole = torch.cat([prompt, model.get_input_embeddings()(found.ids[0])])
    with torch.no_grad():
        states = model(inputs_embeds=whole[None], output_hidden_states=True).hidden_states[layer][0]
    torch.testing.assert_close(found.at[0], states[6:], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found.predicting[0], states[5:-1], atol=1e-5, rtol=1e-5)


def test_padding_on_the_left_changes_nothing(model) -> None:
    prompt = tiny.visual([6])[0]
    noise = torch.full((4, prompt.shape[1]), 9.0)
    plain = greedy(model, prompt[None], torch.ones(1, 6, dtype=torch.long), [-1], 6, 2)
    mask = torch.tensor([[0] * 4 + [1] * 6])
    padded = greedy(model, torch.cat([noise, prompt])[None], mask, [-1], 6, 2)
    assert torch.equal(padded.ids[0], plain.ids[0])
    torch.testing.assert_close(padded.at[0], plain.at[0], atol=1e-5, rtol=1e-5)


def test_every_row_stops_at_its_own_end(model) -> None:
    embeds = torch.stack(tiny.visual([6, 6, 6, 6], seed=1))
    mask = torch.ones(4, 6, dtype=torch.long)
    free = greedy(model, embeds, mask, [-1], 12, -1)
    ends = [int(free.ids[0][2]), int(free.ids[1][5])]
    found = greedy(model, embeds, mask, ends, 12, -1)
    for row, whole, at in zip(found.ids, free.ids, found.at, strict=True):
        stops = [i for i, token in enumerate(whole.tolist()) if token in ends]
        assert row.tolist() == whole.tolist()[: stops[0] if stops else None]
        assert len(at) == len(row)
    assert len(found.ids[0]) <= 2


def test_an_end_that_counts_as_said_has_the_state_that_chose_it(model) -> None:
    embeds = torch.stack(tiny.visual([6, 6, 6, 6], seed=1))
    mask = torch.ones(4, 6, dtype=torch.long)
    free = greedy(model, embeds, mask, [-1], 12, 2)
    said, silent = int(free.ids[0][2]), int(free.ids[1][5])
    for most in (12, 2):
        found = greedy(model, embeds, mask, [said, silent], most, 2, said=[said])
        for row, whole, states, chosen in zip(found.ids, free.ids, found.predicting, free.predicting, strict=True):
            counted = len(row) < most and int(whole[len(row)]) == said
            assert len(states) == len(row) + counted
            torch.testing.assert_close(states, chosen[: len(states)], atol=1e-5, rtol=1e-5)
        assert [len(row) for row in found.at] == [len(row) for row in found.ids]
        assert (len(found.predicting[0]) > len(found.ids[0])) == (most == 12)
