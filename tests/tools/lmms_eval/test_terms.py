import json
import subprocess
import sys

import pytest

from langdc.backbones.chat import conversation
from langdc.tools.lmms_eval.terms import chosen, cut, generation, messages

VIDEO = {"type": "video"}


def text(said: str) -> dict:
    return {"type": "text", "text": said}


@pytest.mark.slow
def test_langdc_can_be_imported_without_lmms_eval():
    code = "import sys; sys.modules['lmms_eval'] = None; import langdc.tools.lmms_eval, langdc.tools.lmms_eval.terms"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("compressor", "kv", "backbone", "settings", "expected"),
    [
        (None, None, None, {}, {}),
        ("vidcom2", None, None, {"keep": 0.25}, {"compressor": {"name": "vidcom2", "keep": 0.25}}),
        ("snapkv", None, None, {"keep": 0.5}, {"kv": {"name": "snapkv", "keep": 0.5}}),
        (
            "vidcom2",
            "snapkv",
            "llava_video",
            {"tokens": 64, "kv.keep": 0.5, "backbone.frames": 8},
            {
                "compressor": {"name": "vidcom2", "tokens": 64},
                "kv": {"name": "snapkv", "keep": 0.5},
                "backbone": {"name": "llava_video", "frames": 8},
            },
        ),
        (None, None, None, {"backbone.pixels": "[64, 1024]"}, {"backbone": {"pixels": [64, 1024]}}),
        ("vidcom2", None, None, {"keep": 0.5, "variant": "released"},
         {"compressor": {"name": "vidcom2", "keep": 0.5, "variant": "released"}}),
        ("chain", None, None, {"members": json.dumps([{"name": "random", "keep": 0.5}])},
         {"compressor": {"name": "chain", "members": [{"name": "random", "keep": 0.5}]}}),
    ],
)  # fmt: skip
def test_model_arguments_become_parts_of_a_model(compressor, kv, backbone, settings, expected):
    assert chosen(compressor, kv, backbone, settings) == expected


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ((None, None, None, {"keep": 0.25}), "set a compressor, and none is named"),
        ((None, None, None, {"kv.keep": 0.25}), "add kv=NAME"),
        (("vidcom2", None, None, {"hots.frames": 8}), "no model argument 'hots.frames'"),
        (("vidcom3", None, None, {}), "Did you mean 'vidcom2'"),
        (("snapkv", "snapkv", None, {}), "works in the cache already"),
    ],
)
def test_model_arguments_of_nothing_are_refused(arguments, reason: str):
    with pytest.raises(ValueError, match=reason):
        chosen(*arguments)


def test_one_video_or_none_is_put_as_by_the_library():
    assert messages("why ?", 1) == conversation("why ?")
    assert messages("why ?", 0) == conversation("why ?", videos=0)


@pytest.mark.parametrize(
    ("question", "visuals", "content"),
    [
        ("why ?", 2, [VIDEO, VIDEO, text("\nwhy ?")]),
        ("is <image> like <video>?", 2, [text("is "), VIDEO, text(" like "), VIDEO, text("?")]),
        ("<image>\nwhy ?", 1, [VIDEO, text("\nwhy ?")]),
        ("<image> or <image>?", 3, [VIDEO, VIDEO, VIDEO, text("\n or ?")]),
        ("<image>why ?", 0, [text("why ?")]),
    ],
)
def test_visuals_stand_where_the_text_marks_one_place_for_each_or_before_it(question, visuals, content):
    assert messages(question, visuals) == [{"role": "user", "content": content}]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, {"max_new_tokens": 1024, "do_sample": False}),
        ({"max_gen_toks": 9}, {"max_new_tokens": 9, "do_sample": False}),
        ({"max_new_tokens": 5, "temperature": 0, "do_sample": True}, {"max_new_tokens": 5, "do_sample": False}),
        (
            {"max_new_tokens": 5, "temperature": 0.7, "top_p": 0.9, "top_k": None},
            {"max_new_tokens": 5, "do_sample": True, "temperature": 0.7, "top_p": 0.9},
        ),
        ({"max_new_tokens": 5, "do_sample": True}, {"max_new_tokens": 5, "do_sample": True}),
        (
            {"max_new_tokens": 5, "temperature": 0, "top_p": 0.9, "num_beams": 3, "image_aspect_ratio": "pad"},
            {"max_new_tokens": 5, "do_sample": False, "num_beams": 3},
        ),
    ],
)
def test_generation_settings(settings, expected):
    assert generation(settings) == expected


@pytest.mark.parametrize(
    ("reply", "until", "expected"),
    [
        ("B. a dog", None, "B. a dog"),
        ("B. a dog\n\nbecause", ["\n\n"], "B. a dog"),
        ("B. a dog", ".", "B"),
        ("one, two; three", [";", ","], "one"),
        ("B", [""], "B"),
    ],
)
def test_replies_are_cut(reply, until, expected):
    assert cut(reply, until) == expected
