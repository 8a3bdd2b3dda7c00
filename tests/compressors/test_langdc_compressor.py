"""LangDC hands the captioner the right visual tokens and the backbone the right soft tokens, in order of segments."""

from dataclasses import replace
from itertools import chain

import pytest
import torch
from torch import Tensor

from langdc.compressors import build
from langdc.compressors.langdc import LangDC
from langdc.config import check
from langdc.conformance.candidates import record
from langdc.flops import Counted, work_flops
from langdc.types import Context
from tests import tiny
from tests.compressors.grids import alone
from tests.reference.pooling import slow_pool

CAPTIONS = [["red square left", "", "blue ring", "green cross up ; yellow ring still"], [""] * 4]
EVERYTHING = frozenset({"tokens", "states", "caption"})


def make(**changes) -> LangDC:
    torch.manual_seed(0)
    settings = {"width": tiny.BACKBONE_WIDTH, "streams": {"image": 24, "video": 32}, **tiny.langdc_settings(**changes)}
    return build("langdc", **settings).eval()


def ids(compressor: LangDC, texts: list[list[str]]) -> list[list[Tensor]]:
    return [[compressor.captioner.encode(text) for text in of_video] for of_video in texts]


def given(compressor: LangDC, texts: list[list[str]] = CAPTIONS, wanted: frozenset[str] = EVERYTHING) -> Context:
    return Context(targets={"captions": ids(compressor, texts)}, wanted=wanted)


def test_visual_tokens_are_projected_then_pooled_per_segment_image_first() -> None:
    compressor = make(projector="mlp2x_gelu")
    videos = [tiny.features(0), tiny.features(1, count=1, size=(5, 7)), tiny.features(2, count=8)]
    found = compressor.visual(videos)
    assert len(found) == 4 + 1 + 2
    expected = []
    for video in videos:
        for first in range(0, len(video.seconds), 4):
            parts = []
            for name, side in (("image", 3), ("video", 2)):
                projected = compressor.projectors[name](video.encoder[name].values[first : first + 4])
                parts.append(slow_pool(projected.detach(), side).flatten(0, 2))
            expected.append(torch.cat(parts))
    for tokens, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(tokens, wanted, atol=1e-5, rtol=1e-5)


def test_a_pool_of_0_leaves_a_stream_out() -> None:
    both, image, video = (make(pool=pool).visual([tiny.features(0)]) for pool in ([3, 2], [3, 0], [0, 2]))
    for first, second, expected in zip(image, video, both, strict=True):
        torch.testing.assert_close(torch.cat([first, second]), expected)
    compressor, called = make(pool=[3, 0]), []
    for name, projector in compressor.projectors.items():
        projector.register_forward_hook(lambda *_, name=name: called.append(name))
    compressor.visual([tiny.features(0)])
    assert called == ["image"]
    with pytest.raises(ValueError, match="leaves every stream out"):
        make(pool=[0, 0])


def test_tokens_are_the_projected_states_of_each_segment() -> None:
    compressor = make(max_soft_tokens=16)
    videos = [tiny.features(0), tiny.features(1)]
    found = compressor(videos, given(compressor))
    direct = compressor.captioner.supervised(compressor.visual(videos), [*chain(*ids(compressor, CAPTIONS))])
    loss, count = found.losses["caption"]
    assert count == direct.targets
    assert torch.equal(loss, direct.loss)
    assert found.tokens[0].per_segment(4) == [len(caption.split()) for caption in CAPTIONS[0]]
    assert len(found.tokens[1]) == 0
    assert found.states is not None
    assert torch.equal(torch.cat(found.states[0]), torch.cat(direct.states[:4]))
    torch.testing.assert_close(found.tokens[0].values, compressor.post_projector(torch.cat(found.states[0])))


def test_given_captions_are_only_read_where_their_loss_is_not_used() -> None:
    """Not wanted, or nothing of the captioner is trained: the same states, by the layers below them."""
    compressor, videos = make(max_soft_tokens=16), [tiny.features(0), tiny.features(1)]
    scored = compressor(videos, given(compressor))
    called = []
    compressor.captioner.language_model.lm_head.register_forward_hook(lambda *_: called.append(1))
    unwanted = compressor(videos, given(compressor, wanted=frozenset({"tokens"})))
    frozen = compressor.requires_grad_(False)(videos, given(compressor))
    assert not called and not unwanted.losses and not frozen.losses
    for found in (unwanted, frozen):
        for tokens, expected in zip(found.tokens, scored.tokens, strict=True):
            torch.testing.assert_close(tokens.values, expected.values, atol=1e-5, rtol=1e-5)


def test_known_states_call_no_captioner() -> None:
    compressor, videos = make(segment_marker=True, max_soft_tokens=16), [tiny.features(0), tiny.features(1)]
    first = compressor(videos, given(compressor, wanted=frozenset({"states"})))
    assert first.tokens == [] and not first.losses
    whole = compressor(videos, given(compressor))
    called = []
    compressor.captioner.language_model.model.register_forward_hook(lambda *_: called.append(1))
    found = compressor(videos, Context(targets={"states": first.states}))
    assert not called
    for tokens, expected in zip(found.tokens, whole.tokens, strict=True):
        torch.testing.assert_close(tokens.values, expected.values, atol=1e-5, rtol=1e-5)
    blank = compressor([tiny.features(3)], Context(targets={"states": [None]}))
    assert blank.tokens[0].per_segment(4) == [1] * 4  # markers alone


def test_nothing_is_computed_for_nothing() -> None:
    compressor = make().requires_grad_(False)
    called = []
    compressor.captioner.language_model.model.register_forward_hook(lambda *_: called.append(1))
    found = compressor([tiny.features(0)], given(compressor, CAPTIONS[:1], frozenset({"caption"})))
    assert not called and found.tokens == [] and not found.losses and found.states is None


def test_a_batch_of_videos_is_captioned_as_each_alone() -> None:
    compressor = make()
    videos = [tiny.features(0), tiny.features(1, count=1), tiny.features(2, count=8)]
    together = compressor(videos).ids
    assert [len(of_video) for of_video in together] == [4, 1, 2]
    for number, video in enumerate(videos):
        assert [i.tolist() for i in compressor([video]).ids[0]] == [i.tolist() for i in together[number]]


def test_written_captions_have_no_gradients_and_leave_training_mode_alone() -> None:
    compressor = make(segment_marker=True).train()
    found = compressor([tiny.features(0)], Context(training=True))
    assert all(part.training for part in compressor.modules())
    assert not any(state.requires_grad for state in found.states[0])
    assert found.tokens[0].values.requires_grad and not found.losses
    assert compressor.text(found.ids[0][0]) == compressor.captioner.decode(found.ids[0][0])


def test_the_language_models_work_is_reported() -> None:
    """By segment: what is read, predicted at what was read, and written; read alone ends at the layer of the states."""
    compressor, video = make(layer=2, max_soft_tokens=16), tiny.features(0, count=6)
    texts = [["red ring", ""]]
    prompt = len(compressor.captioner.before) + len(compressor.captioner.after)
    starts = [prompt + 4 * (9 + 4), prompt + 2 * (9 + 4)]
    lengths = [len(caption) for caption in ids(compressor, texts)[0]]
    (scored,) = compressor([video], given(compressor, texts)).work
    assert [(w.read, w.scored, w.written) for w in scored] == [
        (start + n, n + 1, 0) for start, n in zip(starts, lengths, strict=True)
    ]
    (read,) = compressor([video], given(compressor, texts, frozenset({"tokens"}))).work
    assert [(w.read, w.scored, w.written) for w in read] == [
        (start + n, 0, 0) for start, n in zip(starts, lengths, strict=True)
    ]
    assert [w.config.num_hidden_layers for w in (*scored, *read)] == [3, 3, 2, 2]
    found = compressor([video])
    assert [(w.read, w.scored, w.written) for w in found.work[0]] == [
        (start, 0, len(written) + 1) for start, written in zip(starts, found.ids[0], strict=True)
    ]


def test_the_base_comes_first() -> None:
    base = {"name": "pool", "sides": [2, 1]}
    dual, plain = make(base=base), make()
    dual.load_state_dict(plain.state_dict())
    video = tiny.features(0)
    found, soft, pooled = alone(dual, video), alone(plain, video), alone(build("pool", sides=[2, 1]), video)
    assert torch.equal(found.values, torch.cat([pooled.values, soft.values]))
    assert torch.equal(found.segment, torch.cat([pooled.segment, soft.segment]))
    assert dual.needs == {"encoder", "projected"}
    assert plain.needs == {"encoder"}


def test_a_marker_opens_every_segment_even_a_silent_one() -> None:
    compressor = make(segment_marker=True, max_segments=4, max_soft_tokens=16)
    videos = [tiny.features(0), tiny.features(1)]
    found = compressor(videos, given(compressor))
    tokens, markers = found.tokens, compressor.segment_marker.weight
    assert tokens[0].per_segment(4) == [len(caption.split()) + 1 for caption in CAPTIONS[0]]
    assert torch.equal(tokens[1].values, markers)
    for number in range(4):
        assert torch.equal(tokens[0].values[tokens[0].segment == number][0], markers[number])
    with pytest.raises(ValueError, match="5 segments; max_segments is 4"):
        compressor([tiny.features(0, count=20)], Context(targets={"states": [[found.states[0][0]] * 5]}))


def test_captions_must_fit_the_segments() -> None:
    compressor = make()
    with pytest.raises(ValueError, match="3 captions for a video of 4 segments"):
        compressor([tiny.features(0)], given(compressor, [CAPTIONS[0][:3]]))


def test_targets_of_a_record_are_its_captions() -> None:
    compressor = make()
    asked = record(16, 4, seed=1)
    found = compressor.targets(asked)
    assert [compressor.text(one) for one in found["captions"]] == [segment.caption for segment in asked.segments]
    assert compressor.targets(asked.model_copy(update={"segments": []})) == {}


def test_what_decides_the_states_is_hashed() -> None:
    """Weights of the captioner and its projectors, its settings, and whether captions are given."""
    context = Context(targets={"captions": []})
    frozen = make().requires_grad_(False)
    first = frozen.frozen_identity(context)
    assert first == make().requires_grad_(False).frozen_identity(context)
    others = [make(layer=1), make(soft_token="predicting"), make(pool=[2, 2]), make(max_soft_tokens=5)]
    changed = make()
    changed.projectors["image"][0].weight.data[0, 0] += 1
    trained = make(segment_marker=True).requires_grad_(False)
    trained.post_projector.requires_grad_(True)
    hashes = [one.requires_grad_(False).frozen_identity(context) for one in (*others, changed)]
    assert len({first, *hashes, frozen.frozen_identity(replace(context, targets={}))}) == len(hashes) + 2
    assert trained.frozen_identity(context) == first  # the states do not depend on what reads them
    assert make().frozen_identity(context) is None


def test_bad_settings() -> None:
    with pytest.raises(ValueError, match="pool has 1 sides, the backbone has the streams image, video"):
        make(pool=[3])
    with pytest.raises(ValueError, match=r"no setting 'layers'.*Did you mean 'layer'"):
        make(layers=2)
    with pytest.raises(ValueError, match=r"Unknown compressor 'pol'.*'pool'"):
        make(base={"name": "pol"})


def test_a_config_without_the_backbone_settings_is_complete() -> None:
    """Width, streams and frames per segment come from the backbone that the model is built with."""
    settings = check(type(tiny.config()), tiny.config().model_dump(), "again")
    model = tiny.model()
    assert settings == tiny.config()
    assert (model.compressor.post_projector.out_features, model.compressor.frames_per_segment) == (
        tiny.BACKBONE_WIDTH,
        4,
    )


def test_released_segments_of_a_video_take_equally_many_positions() -> None:
    compressor = make(soft_token="released", max_soft_tokens=16)
    videos = [tiny.features(0), tiny.features(1, count=8)]
    texts = [CAPTIONS[0], ["blue", "red ring left"]]
    found = compressor(videos, given(compressor, texts))
    alone_found = [compressor([v], given(compressor, [t])).tokens[0] for v, t in zip(videos, texts, strict=True)]
    for tokens, expected, of_video in zip(found.tokens, alone_found, ids(compressor, texts), strict=True):
        lengths = [len(caption) for caption in of_video]
        assert tokens.per_segment(len(lengths)) == [max(lengths)] * len(lengths)
        hidden = [[i >= length for i in range(max(lengths))] for length in lengths]
        assert tokens.padding.tolist() == [*chain(*hidden)]
        torch.testing.assert_close(tokens.values, expected.values, atol=1e-5, rtol=1e-5)
    plain = make(soft_token="at", max_soft_tokens=16)(videos, given(compressor, texts))
    for tokens, expected in zip(found.tokens, plain.tokens, strict=True):
        torch.testing.assert_close(tokens.values[~tokens.padding], expected.values, atol=1e-5, rtol=1e-5)
    blank = compressor([videos[0]], Context(targets={"states": [None]}))
    assert len(blank.tokens[0]) == 0


def test_released_captions_of_a_batch_are_written_as_each_alone() -> None:
    compressor = make(soft_token="released", max_soft_tokens=12)
    videos = [tiny.features(0), tiny.features(1, count=1), tiny.features(2, count=8)]
    together = compressor(videos)
    for number, video in enumerate(videos):
        (tokens,), expected = compressor([video]).tokens, together.tokens[number]
        torch.testing.assert_close(tokens.values, expected.values, atol=1e-5, rtol=1e-5)
        assert (tokens.padding is None) == (expected.padding is None)
        longest = max(min(len(i) + 1, 12) for i in together.ids[number])
        assert expected.per_segment(len(together.ids[number])) == [longest] * len(together.ids[number])


def grounded(plain: LangDC, **changes) -> LangDC:
    """The same weights, and a map from what is looked at that starts at zero."""
    made = make(grounded=True, **changes)
    missing, unexpected = made.load_state_dict(plain.state_dict(), strict=False)
    assert (missing, unexpected) == (["grounding.weight"], [])
    return made


@pytest.mark.parametrize("soft_token", ["at", "predicting", "released"])
@pytest.mark.parametrize("base", [None, {"name": "pool", "sides": [2, 1]}])
@pytest.mark.parametrize("captions", ["given", "written"])
def test_grounded_tokens_start_as_the_others_to_the_bit(soft_token: str, base: dict | None, captions: str) -> None:
    changes = {"soft_token": soft_token, "base": base, "max_soft_tokens": 16, "segment_marker": True}
    plain, videos = make(**changes), [tiny.features(0), tiny.features(1, count=8)]
    context = given(plain, [CAPTIONS[0], CAPTIONS[0][:2]]) if captions == "given" else Context(wanted=EVERYTHING)
    compressor = grounded(plain, **changes)
    found, expected = compressor(videos, context), plain(videos, context)
    compressor.grounding.weight.data.normal_()
    changed = compressor(videos, context)
    stored = compressor(videos, Context(targets={"states": changed.states}))
    for number, tokens in enumerate(expected.tokens):
        assert torch.equal(found.tokens[number].values, tokens.values)
        assert changed.tokens[number].values.shape == tokens.values.shape
        assert not torch.allclose(changed.tokens[number].values, tokens.values)
        torch.testing.assert_close(stored.tokens[number].values, changed.tokens[number].values, atol=1e-5, rtol=1e-5)
        assert (tokens.padding is None) == (found.tokens[number].padding is None)


def test_what_is_looked_at_is_the_weighted_mean_of_encoder_features_and_places() -> None:
    """By one token after the other, from the shares that the captioner gives."""
    compressor, videos = make(grounded=[0, 2], max_soft_tokens=16), [tiny.features(0)]
    context = given(compressor, CAPTIONS[:1])
    visual, flat = compressor.visual(videos), ids(compressor, CAPTIONS[:1])[0]
    looks = compressor.captioner.looks(visual, compressor.captioner.read(visual, flat), [0, 2])
    (states,) = compressor(videos, context).states
    for number, (state, look) in enumerate(zip(states, looks, strict=True)):
        expected = torch.zeros(len(flat[number]), 24 + 32 + 3)
        for first, name, side, column, wide in ((0, "image", 3, 0, 24), (36, "video", 2, 24, 32)):
            pooled = slow_pool(videos[0].encoder[name].values[4 * number : 4 * number + 4], side)
            unit = pooled / pooled.norm(dim=-1, keepdim=True)
            for at in range(4 * side * side):
                step, row, place = at // side**2, at // side % side, at % side
                share = look[:, first + at, None]
                expected[:, column : column + wide] += share * unit[step, row, place]
                middle = [(2 * i + 1) / n - 1 for i, n in ((step, 4), (row, side), (place, side))]
                expected[:, -3:] += share * torch.tensor(middle)
        torch.testing.assert_close(state[:, compressor.captioner.width :], expected, atol=1e-5, rtol=1e-5)


def test_a_pool_of_0_is_not_looked_at() -> None:
    compressor = make(grounded=True, pool=[3, 0])
    assert compressor.grounding.in_features == 24 + 3
    assert compressor([tiny.features(0)]).states[0][0].shape[1] == compressor.captioner.width + 24 + 3


def test_written_and_given_captions_look_at_the_same() -> None:
    compressor, videos = make(grounded=True), [tiny.features(0), tiny.features(1, count=6)]
    written = compressor(videos)
    read = compressor(videos, Context(targets={"captions": written.ids}))
    for found, expected in zip(chain(*read.states), chain(*written.states), strict=True):
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_a_reply_teaches_where_to_look() -> None:
    """Gradients of tokens reach the map and the layers below the states from step 0, and once the map is not zero the
    queries and keys above.
    """
    compressor = make(grounded=True, max_soft_tokens=16).train()
    compressor.captioner.language_model.gradient_checkpointing_enable({"use_reentrant": False})
    below, _, layer = (each.self_attn for each in compressor.captioner.language_model.model.layers)
    context = given(compressor, CAPTIONS[:1], frozenset({"tokens"}))
    compressor([tiny.features(0)], context).tokens[0].values.square().sum().backward()
    assert compressor.grounding.weight.grad.abs().min(0).values.max() > 0
    assert below.q_proj.weight.grad.any() and not layer.q_proj.weight.grad.any()
    compressor.grounding.weight.data.normal_()
    compressor([tiny.features(0)], context).tokens[0].values.square().sum().backward()
    assert layer.q_proj.weight.grad.any() and layer.k_proj.weight.grad.any()


def test_grounding_costs_little_and_is_counted() -> None:
    """One layer's queries and keys; the captioner is read no second time."""
    plain = make(max_soft_tokens=16)
    compressor, video, costs = grounded(plain, max_soft_tokens=16), tiny.features(0), []
    for each in (plain, compressor):
        with Counted() as counted:
            found = each([video], given(each, CAPTIONS[:1], frozenset({"tokens"})))
        costs.append((counted.total, work_flops(found.work[0])))
    assert costs[0][1] == costs[1][1]
    assert costs[0][0] < costs[1][0] < costs[0][0] + costs[0][1] / 2


def test_grounded_states_are_not_those_of_others() -> None:
    context = Context(targets={"captions": []})
    plain = make().requires_grad_(False)
    others = [grounded(plain).requires_grad_(False), make(grounded=[0]).requires_grad_(False)]
    assert len({one.frozen_identity(context) for one in (plain, *others)}) == 3
    others[0].grounding.requires_grad_(True)  # it reads the states
    assert others[0].frozen_identity(context) is not None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"layer": -1}, "No layer reads the states of layer 3, the last"),
        ({"grounded": [4]}, r"grounded is \[4\]; give true, or one or more of the heads 0 to 3"),
        ({"grounded": []}, r"grounded is \[\]"),
    ],
)
def test_what_cannot_be_grounded(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(**{"grounded": True, **settings})
