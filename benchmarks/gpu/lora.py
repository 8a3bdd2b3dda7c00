"""A LoRA step on the language model of Qwen2.5-VL-7B: one video of 32 frames, 144 tokens for two of them.

All tokens are read, or the quarter that VidCom2 keeps; encoder outputs are given. Weights are random, in the place's
type; adapters are those of the recipe configs/qwen2_5_vl_7b/vidcom2_lora.

Memory is the peak of a step above weights and optimizer. The floor is the step's operations at the ceiling of products;
what gradient checkpointing computes again is not in it.
"""

import json
from collections.abc import Iterator
from statistics import median
from typing import Any

import torch

from benchmarks import first_token
from benchmarks.gpu.measure import Place, Row, costs, seconds
from langdc import config as settings
from langdc import devices, tiny
from langdc.backbones.chat import conversation
from langdc.config import MemberConfig, RunConfig
from langdc.model import build_compressor
from langdc.train.learner import Learner
from langdc.train.objectives import objectives
from langdc.train.setup import RunModel
from langdc.types import FeatureGrid, VideoBatch

FRAMES, KEEPS, CALLS = 32, (1.0, 0.25), 5
QUESTION, REPLY = "what does the dog do after the door opens ?", "a large red square moves from left to right " * 4


def rows(place: Place) -> Iterator[Row]:
    """Lines without and with gradient checkpointing, then a profile."""
    config = _config(place)
    objective = objectives.build("answer")
    device = torch.device(place.device)
    model = RunModel.of(config, objective, device).model
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4, fused=place.device != "cpu")
    text: Any = model.backbone.language_model
    for checkpointing in (False, True):
        if checkpointing:
            text.gradient_checkpointing_enable({"use_reentrant": False})
        for keep in KEEPS:
            given = {"name": "identity"} if keep == 1 else {"name": "vidcom2", "keep": keep}
            model.compressor = build_compressor(settings.check(MemberConfig, given, "lora"), model.backbone)
            learner, batch = Learner(model, objective).train(), _batch(place, model.backbone)

            def step(learner: Learner = learner, batch: VideoBatch = batch) -> None:
                with torch.autocast(place.device, torch.bfloat16):
                    loss = learner(batch)["loss"]
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()

            step()
            held = 0 if place.device == "cpu" else torch.cuda.memory_allocated() / 2**30
            devices.reset_peak(device)
            taken = median(seconds(step, place.device) for _ in range(CALLS))
            above = None if place.peak_gib is None else place.peak_gib - held
            floor = place.floor(learner.flops)
            yield {
                "table": "steps", "checkpointing": "yes" if checkpointing else "no", "keep": keep,
                "tokens": learner.figures["tokens"], "step s": taken, "floor s": floor, "step / floor": taken / floor,
                "GiB above weights and optimizer": above, "GiB in all": place.peak_gib,
            }  # fmt: skip
            if not checkpointing:
                yield from costs(f"a step, keep {keep}", step, place.device)


def _config(place: Place) -> RunConfig:
    """The recipe, with a model that is drawn at random: the tiny one's, whose language model has the full sizes."""
    source = tiny.folder("qwen2_5_vl")
    sizes = json.loads((source / "config.json").read_text())
    if not place.tiny:
        sizes["text_config"] = {**sizes["text_config"], **first_token.SIZES, "layer_types": None}
        sizes["vision_config"]["out_hidden_size"] = first_token.SIZES["hidden_size"]
    backbone = {"name": "qwen2_5_vl", "source": {"config": sizes, "init": "random"}, "tokenizer": str(source)}
    backbone |= {"dtype": str(place.dtype)[6:]}
    tree = settings.read_tree("qwen2_5_vl_7b/vidcom2_lora")
    model = {"backbone": backbone, "compressor": {"name": "identity"}}
    return settings.check(RunConfig, {**tree, "model": model, "gradient_checkpointing": False}, "the LoRA run")


def _batch(place: Place, backbone: Any) -> VideoBatch:
    """One video of features that change slowly, with a question and its answer."""
    steps, width = (4 if place.tiny else FRAMES // first_token.FRAMES_PER_STEP), backbone.width
    shape = (steps, first_token.HEIGHT, first_token.WIDTH, width)
    still = torch.randn(1, *shape[1:], device=place.device)
    values = (still + 0.5 * torch.randn(shape, device=place.device)).to(place.dtype)
    times = torch.arange(steps * first_token.FRAMES_PER_STEP).double()
    raw = [{"video": FeatureGrid(values)}]
    media = backbone.project(raw, [times], frozenset())
    prompt = backbone.prompt(conversation(QUESTION, REPLY), learn=True, media=media)
    return VideoBatch(raw, [times], [prompt], [(0,)])
