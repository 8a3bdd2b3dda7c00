"""The sample language model's tokenizer: a fast byte-fallback BPE with ChatML tokens, one token per sample word."""

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from langdc.sample.questions import LETTERS
from langdc.sample.scenes import BACKGROUNDS, COLOURS, MOTIONS, SHAPES

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
SPACE = "▁"


def vocabulary() -> list[str]:
    """All words of captions and questions; each is one token of the sample tokenizer."""
    words = "how many objects are in segment what shape is the object does move which shows has most colour motion"
    chat = "user assistant system describe image video"
    digits = [str(d) for d in range(10)]
    markers = [f"[{d}]" for d in range(1, 10)]
    marks = [*LETTERS, *";?().,:", "\n"]
    unsaid = "background of larger than or upper lower appear before yes no"
    named = [*COLOURS, *SHAPES, *MOTIONS]
    return [*named, *words.split(), *chat.split(), *digits, *markers, *marks, *unsaid.split(), *BACKGROUNDS]


def _merges(words: list[str]) -> tuple[list[str], list[tuple[str, str]]]:
    """Left-to-right merges that build each word, and the symbols they make."""
    made: dict[str, None] = {}
    merges: dict[tuple[str, str], None] = {}
    for word in words:
        left = word[0]
        for letter in word[1:]:
            merges[left, letter] = None
            left += letter
            made[left] = None
    return list(made), list(merges)


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Make the tokenizer: every word of the grammar is one token; any other text falls back to letters and bytes."""
    letters = [chr(code) for code in range(33, 127)]
    symbols, merges = _merges([SPACE + word for word in vocabulary()])
    byte_tokens = [f"<0x{b:02X}>" for b in range(256)]
    tokens = [*SPECIAL, *byte_tokens, SPACE, "\n", *letters, *symbols]
    vocab = {token: number for number, token in enumerate(dict.fromkeys(tokens))}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges, byte_fallback=True))
    tokenizer.normalizer = normalizers.Replace(Regex(" +"), " ")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\n|\[\d\]|[;?().,:]"), "isolated"),
            pre_tokenizers.Split(Regex(r" "), "removed"),
            pre_tokenizers.Metaspace(SPACE, prepend_scheme="always", split=False),
        ]
    )
    tokenizer.decoder = decoders.Sequence(
        [decoders.ByteFallback(), decoders.Fuse(), decoders.Replace(SPACE, " "), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>", chat_template=CHATML
    )
