"""Teach a small language model to see: it reads the sample encoders' pooled tokens and answers questions about videos.

Segments are drawn and encoded once (`Bank`); a video is any four of them, so there are more videos than can be read.
Every example is one video and many questions that see the video but not each other. How many tokens are read changes by
step, since a model that has only seen whole grids reads nothing else. Some steps read captions, to know words.
Letters: B videos, S segments, T frames, H W pooled grid, C encoder width, D width, V tokens, K questions of L tokens.
"""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from transformers import AttentionInterface, PreTrainedTokenizerBase, Qwen2ForCausalLM

from examples.sample_world.pretrain_encoders import coverage, like_h264
from examples.sample_world.small_language_model import (
    Encoder,
    blurred,
    build_model,
    build_optimizers,
    look_at_question,
    look_back,
    look_up,
    show_words,
)
from langdc import jsonl
from langdc.projectors import average_pool
from langdc.sample.questions import GROUPS, KINDS
from langdc.sample.render import draw
from langdc.sample.scenes import (
    BACKGROUNDS,
    COLOURS,
    FRAMES_PER_SEGMENT,
    MAX_OBJECTS,
    MOTIONS,
    SEGMENTS,
    SHAPES,
    Segment,
    as_text,
    caption,
    sample_segment,
)

SIDE = 4
SHORT, LONG = (28, 16), (4, 30)  # K questions of up to L tokens: asked, and described or chosen
LAYOUTS = {"segment": 0.35, "pool": 0.15, "whole": 0.1, "some": 0.2, "words": 0.2}  # how often steps read each
AT_FIRST = {"segment": 0.65, "words": 0.35}  # the same while questions are easy
NOISE, NOISY_FROM = 0.7, 0.6  # of words' size, from a share of the steps on: exact ones teach too sharp an attention
FEWEST = 0.04  # the least share of tokens that is kept at random in training
EVERY, VIDEOS = 250, 200  # steps between two tests, and videos in each test
TESTED = ("whole", "pool", 0.5, 0.25, 0.1, 0.05, "words")
WORD_SIZE = 0.2  # standard deviation of embeddings: smaller ones, and what looks them up, are lost in 40 steps of AdamW
HELD, EARLY = 300, 700  # steps before what looks things up is trained, and before all is read and asked
EASY, FEW = ("count", "shape", "motion", "left_right", "background"), (12, 16)  # asked until then, K and L
SAID = tuple(kind for kind in KINDS if kind not in GROUPS["unsaid"])  # asked about words


@dataclass
class Bank:
    """Segments and their pooled features of two streams [n,2,T,SIDE,SIDE,C]."""

    segments: list[Segment]
    features: Tensor

    def draw(self, rng: np.random.Generator, videos: int, alike: bool = False) -> tuple[list[list[Segment]], Tensor]:
        """Random videos and their features [B,2,S*T,H,W,C]; `alike`: captions of equal lengths."""
        index = rng.integers(len(self.segments), size=(videos, SEGMENTS))
        if alike:  # the same numbers of objects, in another order
            full = np.array([len(segment) for segment in self.segments])
            counts = rng.permuted(np.tile(rng.integers(MAX_OBJECTS + 1, size=SEGMENTS), (videos, 1)), axis=1)
            index = np.array([[rng.choice(np.flatnonzero(full == count)) for count in row] for row in counts])
        found = self.features[torch.from_numpy(index)].float()
        return [[self.segments[i] for i in row] for row in index], found.transpose(1, 2).flatten(2, 3)


@torch.no_grad()
def make_bank(encoders: Sequence[Callable[[Tensor], Tensor]], size: int, seed: int) -> Bank:
    """Draw and encode `size` segments; each encoder maps pixels [n,T,3,height,width] to grids [n,T,H,W,C]."""
    rng, segments, features = np.random.default_rng(seed), [], []
    for start in range(0, size, 32):
        some = [sample_segment(rng) for _ in range(min(32, size - start))]
        frames = np.stack([draw(segment, rng) for segment in some])
        pixels = like_h264(torch.from_numpy(frames).permute(0, 1, 4, 2, 3).float())
        with torch.autocast("cpu", torch.bfloat16):
            grids = [encode(pixels).float() for encode in encoders]
        pooled = [average_pool(grid.flatten(0, 1), SIDE).unflatten(0, grid.shape[:2]) for grid in grids]
        segments += some
        features.append(torch.stack(pooled, 1).half())
    return Bank(segments, torch.cat(features))


class Sight(nn.Module):
    """From encoder features to tokens: a linear projector per stream, and where and when each token is seen."""

    def __init__(self, width_in: int, width: int) -> None:
        super().__init__()
        self.projectors = nn.ModuleList([nn.Linear(width_in, width) for _ in range(2)])
        sizes = {"step": SEGMENTS * FRAMES_PER_SEGMENT, "row": SIDE, "column": SIDE}
        self.places = nn.ParameterDict({name: torch.randn(size, width) * 0.3 for name, size in sizes.items()})

    def forward(self, features: Tensor) -> Tensor:
        """Features [B,2,T,H,W,C] to grids [B,2,T,H,W,D]."""
        seen = torch.stack([projector(features[:, n]) for n, projector in enumerate(self.projectors)], 1)
        step, row, column = (self.places[name] for name in ("step", "row", "column"))
        return seen + step[:, None, None] + row[:, None] + column


def tokens(grids: Tensor, layout: str | float, rng: np.random.Generator) -> Tensor:
    """Grids [B,2,T,H,W,D] as tokens [B,V,D], all of one stream first.

    `layout`: "whole"; "pool" for 2x2 a frame; "segment" for the mean of a segment's frames; or the share that is kept
    of all tokens, at random.
    """
    if layout == "pool":
        return grids.unflatten(3, (2, 2)).unflatten(5, (2, 2)).mean((4, 6)).flatten(1, 4)
    if layout == "segment":
        return grids.unflatten(2, (SEGMENTS, -1)).mean(3).flatten(1, 4)
    whole = grids.flatten(1, 4)
    if layout == "whole":
        return whole
    kept = max(1, round(float(layout) * whole.shape[1]))
    index = np.stack([np.sort(rng.permutation(whole.shape[1])[:kept]) for _ in range(len(whole))])
    return whole.gather(1, torch.from_numpy(index)[..., None].expand(-1, -1, whole.shape[2]))


def _attend(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: None, scaling: float, **shape) -> tuple:
    """Causal attention over the shared part, and of each question to that and to itself: [B,M,h,E]."""
    shared = shape["shared"]
    q, k, v = ([part[:, :, :shared], part[:, :, shared:]] for part in (query, key, value))
    out, start = [F.scaled_dot_product_attention(q[0], k[0], v[0], is_causal=True, scale=scaling)], 0
    for count, length in shape["blocks"]:
        stop = start + count * length
        own_q, own_k, own_v = (part[1][:, :, start:stop].unflatten(2, (count, length)) for part in (q, k, v))
        later = torch.ones(length, length, dtype=torch.bool).triu(1)
        own = (own_q @ own_k.transpose(-1, -2)).masked_fill(later, -1e4).flatten(2, 3)
        weight = (torch.cat([q[1][:, :, start:stop] @ k[0].transpose(-1, -2), own], -1) * scaling).softmax(-1)
        weight = weight.to(v[0].dtype)
        seen = weight[..., :shared] @ v[0]
        out.append(seen + (weight[..., shared:].unflatten(2, (count, length)) @ own_v).flatten(2, 3))
        start = stop
    return torch.cat(out, 2).transpose(1, 2), None


AttentionInterface.register("branches", _attend)


class Asked:
    """Questions about videos as rows of ids and labels."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer, self.encoder = tokenizer, Encoder(tokenizer)

    def draw(
        self, rng: np.random.Generator, video: list[Segment], rounds: int, kinds: tuple[str, ...] = tuple(KINDS)
    ) -> list[tuple[str, str, str]]:
        """Different questions of `kinds` about a video in random order: (text, answer, kind)."""
        asked = [KINDS[kind](rng, video) for _ in range(rounds) for kind in kinds]
        found = list({q.text: (q.text, q.answer, q.kind) for q in asked if q}.values())
        return [found[i] for i in rng.permutation(len(found))]

    def rows(self, turns: list[tuple[str, str, str]], block: tuple[int, int]) -> np.ndarray:
        """Ids and labels [2,K,L]; a label stands where it is predicted. Rows without a question are padding."""
        rows = np.full((2, *block), -100)
        rows[0] = self.tokenizer.pad_token_id
        for number, turn in enumerate(turns[: block[0]]):
            question, reply = self.encoder.question(turn)
            ids = [*question, *reply]
            rows[0, number, : len(ids) - 1] = ids[:-1]
            rows[1, number, len(question) - 1 : len(ids) - 1] = reply
        return rows

    def words(self, videos: list[list[Segment]]) -> Tensor:
        """Ids [B,V] of the captions of videos that are `alike`."""
        return torch.tensor([self.encoder.ids(as_text([caption(segment) for segment in video])) for video in videos])

    def batch(
        self, rng: np.random.Generator, videos: list[list[Segment]], easy: bool = False, words: bool = False
    ) -> tuple[Tensor, ...]:
        """Ids and labels of short and of long questions about each video, [2,B,K,L] each.

        `easy`: few short ones; `words`: only what captions answer.
        """
        kinds = tuple(kind for kind in (EASY if easy else KINDS) if not words or kind in SAID)
        short, long = [], []
        for video in videos:
            turns = self.draw(rng, video, 3, kinds)
            if easy:
                short.append(self.rows(turns, FEW))
                continue
            told = [int(n) for n in rng.permutation(SEGMENTS)[: LONG[0] // 2] if len(video[n])]
            described = [(f"describe segment {n + 1}", caption(video[n]), "describe") for n in told]
            short.append(self.rows([turn for turn in turns if turn[2] != "choice"], SHORT))
            long.append(self.rows([*described, *[turn for turn in turns if turn[2] == "choice"]], LONG))
        return tuple(torch.from_numpy(np.stack(part, 1)) for part in (short, long) if part)


def states(model: Qwen2ForCausalLM, opening: list[int], shown: Tensor, parts: Sequence[Tensor]) -> list[Tensor]:
    """The last states [B,K,L,D] of each part's questions (ids [B,K,L]) about videos of tokens `shown` [B,V,D]."""
    embed = model.get_input_embeddings()
    head = embed(torch.tensor(opening)).expand(len(shown), -1, -1)
    shared = len(opening) + shown.shape[1]
    blocks = [part.shape[1:] for part in parts]
    embeds = torch.cat([head, shown, *[embed(part).flatten(1, 2) for part in parts]], 1)
    positions = [torch.arange(shared), *[shared + torch.arange(length).repeat(count) for count, length in blocks]]
    found = model.model(
        inputs_embeds=embeds,
        position_ids=torch.cat(positions)[None].expand(len(shown), -1),
        attention_mask={"full_attention": None},
        use_cache=False,
        shared=shared,
        blocks=tuple(blocks),
    ).last_hidden_state[:, shared:]
    lengths = [count * length for count, length in blocks]
    return [part.unflatten(1, block) for part, block in zip(found.split(lengths, 1), blocks, strict=True)]


def loss_of(model: Qwen2ForCausalLM, opening: list[int], shown: Tensor, asked: Sequence[Tensor]) -> Tensor:
    """Cross-entropy of the replies; the words of a description count a quarter. `asked`: ids and labels [2,B,K,L]."""
    total, weights = shown.new_zeros(()), 0.0
    for found, (_, labels), weight in zip(
        states(model, opening, shown, [a[0] for a in asked]), asked, (1.0, 0.25), strict=False
    ):
        learned = labels != -100
        logits = model.lm_head(found[learned]).float()
        total = total + weight * F.cross_entropy(logits, labels[learned], reduction="sum")
        weights += weight * int(learned.sum())
    return total / weights


@torch.no_grad()
def accuracy(
    seeing: "Seeing", asked: Asked, bank: Bank, layout: str | float, videos: int, seed: int
) -> dict[str, float]:
    """Share of right one-word answers, by kind, on held-out `videos`, each of which is asked every kind once."""
    rng, right, model, words = np.random.default_rng(seed), {}, seeing.model, layout == "words"
    for _ in range(-(-videos // 20)):
        scenes, features = bank.draw(rng, min(20, videos), alike=words)
        kinds = SAID if words else tuple(KINDS)
        turns = [[turn for turn in asked.draw(rng, video, 1, kinds) if turn[2] != "choice"] for video in scenes]
        ids, labels = torch.from_numpy(np.stack([asked.rows(each, (len(KINDS), SHORT[1])) for each in turns], 1))
        with torch.autocast("cpu", torch.bfloat16):
            shown = seeing.show(asked.words(scenes) if words else features, layout, rng)
            (found,) = states(model, asked.encoder.opening, shown, [ids])
        first = (labels != -100).int().argmax(-1, keepdim=True)
        said = model.lm_head(found.gather(2, first[..., None].expand(-1, -1, -1, found.shape[-1]))).argmax(-1)
        hits = (said == labels.gather(2, first))[..., 0].tolist()
        for each, marks in zip(turns, hits, strict=True):
            for turn, hit in zip(each, marks, strict=False):
                right.setdefault(turn[2], []).append(hit)
    return {kind: round(sum(hits) / len(hits), 4) for kind, hits in sorted(right.items())}


@torch.no_grad()
def see(sight: Sight, bank: Bank, looks: dict[str, Tensor]) -> None:
    """Start the projectors as the least-squares maps from features to the `looks` of what a token shows.

    `looks`: vectors [D] by word. A token shows its background, or the objects on it, which count in full from a third
    of its place. Steps start near the number of their segment.
    """
    wanted = torch.zeros(*bank.features.shape[:1], *bank.features.shape[2:5], sight.places["step"].shape[1])
    for number, segment in enumerate(bank.segments):
        cover = (3 * torch.from_numpy(coverage(segment, SIDE))).clamp(max=1)
        for thing, shown in zip(segment, cover, strict=True):
            wanted[number] += shown[..., None] * (looks[thing.colour] + looks[thing.shape] + looks[thing.motion])
        wanted[number] += (1 - cover.sum(0).clamp(max=1))[..., None] * looks[segment.background]
    for number, projector in enumerate(sight.projectors):
        seen = F.pad(bank.features[:, number].flatten(0, 3).float(), (0, 1), value=1.0)
        ridge = 1e-3 * len(seen) * torch.eye(seen.shape[1])
        found = torch.linalg.solve(seen.T @ seen + ridge, seen.T @ wanted.flatten(0, 3))
        projector.weight.copy_(found[:-1].T)
        projector.bias.copy_(found[-1])
    for step, place in enumerate(sight.places["step"]):
        place += looks[str(1 + step // FRAMES_PER_SEGMENT)]


class Seeing(nn.Module):
    """The language model and its sight, as they are trained."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, bank: Bank, width: int, layers: int) -> None:
        super().__init__()
        self.model = build_model(tokenizer, width, layers)
        self.model.config._attn_implementation = "branches"
        self.sight = Sight(bank.features.shape[-1], width)
        words = self.model.get_input_embeddings().weight.detach()
        words *= WORD_SIZE / words.std()
        looks = {
            name: torch.randn(width) * words.std() for name in (*COLOURS, *"1234", *SHAPES, *MOTIONS, *BACKGROUNDS)
        }
        with torch.no_grad():
            for name, table in self.sight.places.items():
                table.mul_(words.std() / table.std() * (0.3 if name == "step" else 1))
        see(self.sight, Bank(bank.segments[:512], bank.features[:512]), looks)
        pairs = [(words[Encoder(tokenizer).ids(name)[0]], look) for name, look in looks.items()]
        look_back(self.model, 3, 0)
        for head in (0, 1, 3):  # the words before and at each place
            show_words(self.model, head, pairs)
        for layer in range(2):
            look_up(self.model, layer, 2, pairs, len(COLOURS) + SEGMENTS)
        look_up(self.model, 1, 3, pairs, 14)
        for layer in range(1, layers):
            look_at_question(self.model, layer, 0)

    def hold(self, held: bool) -> None:
        """Freeze the parts that look things up, or train them too.

        While a model learns what answers look like, nearly random updates would undo their start.
        """
        layers = self.model.model.layers
        for part in (self.sight, self.model.get_input_embeddings(), *(layers[n].self_attn for n in range(2))):
            part.requires_grad_(not held)

    def show(self, features: Tensor, layout: str | float, rng: np.random.Generator, noise: float = 0.0) -> Tensor:
        """Features as tokens [B,V,D]; with the layout "words" ids [B,V] as embeddings, with `noise` as in `blurred`."""
        if layout != "words":
            return tokens(self.sight(features), layout, rng)
        words = self.model.get_input_embeddings()(features)
        return blurred(words, noise).to(words.dtype)

    def forward(
        self,
        opening: list[int],
        features: Tensor,
        layout: str | float,
        rng: np.random.Generator,
        asked: Sequence[Tensor],
        noise: float = 0.0,
    ) -> Tensor:
        """The loss of questions about videos; see `show` and `loss_of`."""
        return loss_of(self.model, opening, self.show(features, layout, rng, noise), asked)


def pretrain(
    seeing: Seeing,
    asked: Asked,
    bank: Bank,
    test: Bank,
    folder: Path,
    steps: int,
    size: int,
    peak: float,
    seed: int,
    flat: bool = False,
) -> None:
    """Train on freshly composed videos, `size` a step, from the state in `folder` if there is one.

    Every 250 steps `folder` gets the state and, in log.jsonl, accuracies on held-out videos. A step's batch depends on
    seed and step alone. Easy kinds come first, with few tokens. The learning rate falls over the last 40 %, and words
    get noise, unless `flat`. Weights are float32, computation is bfloat16.
    """
    rest = torch.optim.AdamW(seeing.sight.parameters(), lr=peak, weight_decay=0.0, betas=(0.9, 0.98))
    optimizers, file, done = [*build_optimizers(seeing.model, peak), rest], folder / "training.pt", 0
    if file.is_file():
        state = torch.load(file)
        done = state["step"]
        seeing.load_state_dict(state["seeing"])
        for optimizer, its in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(its)
    started, losses = time.process_time(), []
    for step in range(done + 1, steps + 1):
        rng = np.random.default_rng([seed, step])
        torch.manual_seed(int(rng.integers(2**31)))
        layouts = LAYOUTS if step > EARLY else AT_FIRST
        layout = list(layouts)[rng.choice(len(layouts), p=list(layouts.values()))]
        seeing.hold(step <= HELD)
        words = layout == "words"
        videos, features = bank.draw(rng, size, alike=words)
        questions = asked.batch(rng, videos, step <= EARLY, words)
        shown = asked.words(videos) if words else features.bfloat16()
        kept = FEWEST ** rng.random() if layout == "some" else layout
        low = {name: parameter.bfloat16() for name, parameter in seeing.named_parameters()}
        noise = NOISE if step > NOISY_FROM * steps and not flat else 0.0
        given = (asked.encoder.opening, shown, kept, rng, questions, noise)
        loss = functional_call(seeing, low, given, tie_weights=True)
        seeing.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(seeing.parameters(), 1.0)
        warm = step / 30 if step <= HELD else (step - HELD) / 100  # anew for what was held
        rate = peak * min(1.0, warm, 1.0 if flat else max(0.02, (1 - step / steps) / 0.4))
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.step()
        losses.append(loss.item())
        if step % EVERY == 0 or step == steps:
            found = {str(n): accuracy(seeing, asked, test, n, VIDEOS, seed) for n in TESTED}
            seconds = round(time.process_time() - started)
            line = {"step": step, "loss": round(float(np.mean(losses[-50:])), 4), "cpu_seconds": seconds}
            states_of = [optimizer.state_dict() for optimizer in optimizers]
            with jsonl.writing(file) as partial:
                torch.save({"step": step, "seeing": seeing.state_dict(), "optimizers": states_of}, partial)
            with (folder / "log.jsonl").open("a") as log:
                log.write(json.dumps(line | {"accuracy": found}) + "\n")
