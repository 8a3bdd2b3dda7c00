"""The captioner equals its slow definition, however its segments are batched, and stops by itself."""

import pytest
import torch
from torch import Tensor

from langdc import decode
from langdc.captioner import Captioner
from tests import tiny
from tests.reference.captions import SlowCaptioner

CLOSE = {"atol": 1e-5, "rtol": 1e-5}
LENGTHS = [7, 3, 10, 1]
CAPTIONS = ["red square left ; blue ring still", "", "green cross up", "yellow"]


def _ids(captioner: Captioner, texts: list[str] = CAPTIONS) -> list[Tensor]:
    return [captioner.encode(text) for text in texts]


def _with_natural_end(captioner: Captioner, visual: list[Tensor], after: int = 3) -> None:
    """Make the token that the first segment writes at place `after` an end token."""
    captioner.end = [-1]
    captioner.end = [int(captioner.write(visual).ids[0][after])]


@pytest.mark.parametrize("layer", [0, 2, -1])
@pytest.mark.parametrize("soft_token", ["at", "predicting"])
def test_given_captions_equal_the_slow_definition(layer: int, soft_token: str) -> None:
    captioner = tiny.captioner(layer=layer, soft_token=soft_token)
    slow, visual, captions = SlowCaptioner(captioner), tiny.visual(LENGTHS), _ids(captioner)
    found = captioner.supervised(visual, captions)
    end = captioner.tokenizer.eos_token_id
    pairs = list(zip(visual, [c.tolist() for c in captions], strict=True))
    expected = sum(slow.loss(seen, caption, end) for seen, caption in pairs)
    assert found.loss.item() == pytest.approx(expected, rel=1e-5)
    assert found.targets == sum(len(caption) + 1 for caption in captions)
    for states, (seen, caption) in zip(found.states, pairs, strict=True):
        torch.testing.assert_close(states, slow.states(seen, caption, soft_token), **CLOSE)


def test_layers_hold_the_states_of_both_slices() -> None:
    visual = tiny.visual(LENGTHS)
    for layer in (0, 2, 3):
        at, predicting = (tiny.captioner(layer=layer, soft_token=each) for each in ("at", "predicting"))
        found, captions = at.layers(visual, _ids(at)), _ids(at)
        assert len(found) == 4 and list(map(len, found[0])) == [len(ids) + 1 for ids in captions]
        pairs = zip(
            found[layer], at.read(visual, captions).states, predicting.read(visual, captions).states, strict=True
        )
        for states, one, other in pairs:
            torch.testing.assert_close(states[1:], one, **CLOSE)
            torch.testing.assert_close(states[:-1], other, **CLOSE)


@pytest.mark.parametrize("soft_token", ["at", "predicting"])
def test_written_captions_equal_the_slow_definition(soft_token: str) -> None:
    captioner = tiny.captioner(soft_token=soft_token, max_soft_tokens=9)
    visual = tiny.visual(LENGTHS)
    _with_natural_end(captioner, visual)
    slow, found = SlowCaptioner(captioner), captioner.write(visual)
    for seen, ids, states in zip(visual, found.ids, found.states, strict=True):
        assert ids.tolist() == slow.write(seen, captioner.end, most=9)
        torch.testing.assert_close(states, slow.states(seen, ids.tolist(), soft_token), **CLOSE)
    assert len({len(ids) for ids in found.ids}) > 1
    assert found.targets == 0


@pytest.mark.parametrize("soft_token", ["at", "predicting"])
def test_written_captions_have_the_states_of_the_same_captions_given(soft_token: str) -> None:
    captioner = tiny.captioner(soft_token=soft_token)
    visual = tiny.visual(LENGTHS)
    _with_natural_end(captioner, visual)
    written = captioner.write(visual)
    given = captioner.supervised(visual, written.ids)
    for found, expected in zip(written.states, given.states, strict=True):
        torch.testing.assert_close(found, expected, **CLOSE)


def test_released_reads_given_captions_at_and_written_ones_predicting() -> None:
    modes = {mode: tiny.captioner(soft_token=mode) for mode in ("released", "at", "predicting")}
    visual, captions = tiny.visual(LENGTHS), _ids(modes["at"])
    given = {mode: torch.cat(c.supervised(visual, captions).states) for mode, c in modes.items()}
    written = {mode: torch.cat(c.write(visual).states) for mode, c in modes.items()}
    assert torch.equal(given["released"], given["at"])
    assert torch.equal(written["released"], written["predicting"])
    assert not torch.allclose(given["at"], given["predicting"])
    assert not torch.allclose(written["at"], written["predicting"])


def test_a_batch_equals_its_segments_one_by_one() -> None:
    captioner = tiny.captioner()
    visual, captions = tiny.visual(LENGTHS), _ids(captioner)
    _with_natural_end(captioner, visual)
    given, written = captioner.supervised(visual, captions), captioner.write(visual)
    alone = [captioner.supervised([seen], [caption]) for seen, caption in zip(visual, captions, strict=True)]
    assert given.loss.item() == pytest.approx(sum(one.loss.item() for one in alone), rel=1e-5)
    for number, one in enumerate(alone):
        torch.testing.assert_close(given.states[number], one.states[0], **CLOSE)
        single = captioner.write([visual[number]])
        assert torch.equal(single.ids[0], written.ids[number])
        torch.testing.assert_close(single.states[0], written.states[number], **CLOSE)


def test_an_empty_caption_gives_no_state_and_learns_to_end() -> None:
    captioner = tiny.captioner()
    (seen,) = tiny.visual([4])
    found = captioner.supervised([seen], [captioner.encode("")])
    assert found.states[0].shape == (0, captioner.width)
    assert found.targets == 1
    end = captioner.tokenizer.eos_token_id
    assert found.loss.item() == pytest.approx(-float(SlowCaptioner(captioner).last(seen, [])[0][end]), rel=1e-5)
    before = found.loss.item()
    found.loss.backward()
    with torch.no_grad():
        for parameter in captioner.parameters():
            parameter -= 1e-2 * parameter.grad
    assert captioner.supervised([seen], [captioner.encode("")]).loss.item() < before


def test_a_captioner_that_ends_at_once_writes_nothing() -> None:
    captioner = tiny.captioner()
    visual = tiny.visual([4])
    _with_natural_end(captioner, visual, after=0)
    found = captioner.write(visual)
    assert len(found.ids[0]) == 0
    assert found.states[0].shape == (0, captioner.width)


@pytest.mark.parametrize("most", [1, 4, 8, 9])
def test_max_soft_tokens_cuts_and_keeps_every_state(most: int) -> None:
    captioner = tiny.captioner(max_soft_tokens=most)
    captioner.end = [-1]
    found = captioner.write(tiny.visual(LENGTHS))
    assert [len(ids) for ids in found.ids] == [most] * 4
    given = captioner.supervised(tiny.visual(LENGTHS), found.ids)
    torch.testing.assert_close(torch.cat(found.states), torch.cat(given.states), **CLOSE)
    assert len(captioner.encode("red " * 20)) == most


def test_a_cut_caption_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    captioner = tiny.captioner(max_soft_tokens=4)
    for length in (4, 5, 6):
        captioner.encode("red " * length)
    assert [record.getMessage().split(",")[0] for record in caplog.records] == [
        "A caption of 5 tokens is cut to max_soft_tokens = 4"
    ]


@pytest.mark.parametrize("every", [1, 3, 100])
def test_how_often_the_stop_flags_are_read_changes_only_the_work(every: int, monkeypatch: pytest.MonkeyPatch) -> None:
    captioner = tiny.captioner(max_soft_tokens=12)
    visual = tiny.visual([7])
    _with_natural_end(captioner, visual)
    expected = captioner.write(visual)
    calls = []
    captioner.language_model.model.register_forward_hook(lambda *_: calls.append(1))
    monkeypatch.setattr(decode, "_CHECK_EVERY", every)
    found = captioner.write(visual)
    assert torch.equal(found.ids[0], expected.ids[0])
    assert torch.equal(found.states[0], expected.states[0])
    needed = len(found.ids[0]) + 1
    assert len(calls) == min(13, -(-needed // every) * every)


def test_the_prompt_surrounds_the_visual_tokens() -> None:
    templated, literal = tiny.captioner(), tiny.captioner(prompt="look {video} and speak")
    decode = templated.tokenizer.decode
    assert "user" in decode(templated.before)
    assert "describe the segment" in decode(templated.after)
    assert decode(templated.after).rstrip().endswith("assistant")
    assert (literal.decode(literal.before), literal.decode(literal.after)) == ("look", "and speak")


def test_text_and_ids() -> None:
    captioner = tiny.captioner()
    ids = captioner.encode("red square left ; blue ring")
    assert captioner.tokenizer.eos_token_id not in ids.tolist()
    assert captioner.decode(ids) == "red square left ; blue ring"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"soft_token": "near"}, "soft_token is 'near'; allowed are at, predicting, released"),
        ({"max_soft_tokens": 0}, "max_soft_tokens is 0"),
        ({"layer": 4}, "layer is 4; a captioner of 3 layers"),
        ({"layer": -5}, "layer is -5"),
    ],
)
def test_bad_settings(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny.captioner(**settings)


def test_an_end_that_does_not_pad_has_a_state_in_the_released_way() -> None:
    captioner = tiny.captioner(soft_token="released")
    visual = tiny.visual([6, 4], seed=2)
    captioner.end = [-1]
    free = captioner.write(visual)
    end = int(free.ids[0][3])
    captioner.end = [end]
    settings = captioner.language_model.generation_config
    assert settings is not None  # a language model of transformers has them
    for pad, more in ((end, 0), (end + 1, 1)):
        settings.pad_token_id = pad
        found = captioner.write(visual)
        count = len(found.ids[0])
        assert count <= 3 and len(found.states[0]) == count + more
        torch.testing.assert_close(found.states[0], free.states[0][: count + more], atol=1e-5, rtol=1e-5)
    captioner.soft_token = "predicting"
    assert len(captioner.write(visual).states[0]) == count


@pytest.mark.parametrize("heads", [None, [1, 3]])
@pytest.mark.parametrize("soft_token", ["at", "predicting"])
def test_what_states_look_at_equals_eager_attention(soft_token: str, heads: list[int] | None) -> None:
    """In the layer above the states, renormalised over visual tokens, whether captions are given, scored or written."""
    captioner = tiny.captioner(soft_token=soft_token)
    visual = tiny.visual(LENGTHS)
    _with_natural_end(captioner, visual)
    written = captioner.write(visual)
    outputs = [written, captioner.read(visual, written.ids), captioner.supervised(visual, written.ids)]
    model, before, shift = captioner.language_model, len(captioner.before), int(soft_token == "predicting")
    model.set_attn_implementation("eager")
    words, expected = model.get_input_embeddings(), []
    for seen, ids in zip(visual, written.ids, strict=True):
        row = torch.cat([words(captioner.before), seen, words(captioner.after), words(ids)])
        weights = model(inputs_embeds=row[None], output_attentions=True).attentions[captioner.layer][0]
        asking = torch.arange(len(ids)) + len(row) - len(ids) - shift
        some = weights[:, asking, before : before + len(seen)]
        some = (some / some.sum(-1, keepdim=True))[heads or slice(None)]
        expected.append(some.mean(0))
    model.set_attn_implementation("sdpa")
    for output in outputs:
        for found, wanted in zip(captioner.looks(visual, output, heads), expected, strict=True):
            torch.testing.assert_close(found, wanted, **CLOSE)
            torch.testing.assert_close(found.sum(1), torch.ones(len(found)), **CLOSE)
    assert model.config._attn_implementation == "sdpa"
