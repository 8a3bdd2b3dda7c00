"""DyCoke's second stage against its authors' code: what each token reads, and whole replies of a tiny checkpoint.

Recorded are queries [S,h,E] of S tokens of a reply and the keys [G,K,E] that they find; no case is a tie.
"""

import json
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from langdc.generate import Continuation
from langdc.kvcompressors import build
from langdc.kvcompressors.dycoke import ALIKE, DyCokeDecoding
from langdc.prefill import prefill
from langdc.types import Chunk, Plan
from tests.golden.test_kv_end_to_end import loaded

FOLDER = Path(__file__).parent
RECORD = json.loads((FOLDER / "dycoke.json").read_text())


@pytest.fixture(scope="module")
def stored() -> dict[str, Tensor]:
    return load_file(FOLDER / "dycoke.safetensors")


def each(name: str) -> list:
    return [pytest.param(case, id=case["id"]) for case in RECORD[name]]


def read_by(member: DyCokeDecoding, stored: dict[str, Tensor], case: dict, shown: int) -> list[list[int]]:
    """What layer 1 reads for each token, of a video of `shown` rows."""
    before, video, after = case["shape"]
    query, key = (stored[f"{case['id']}.{part}"].float()[None] for part in ("query", "key"))
    length = before + video + after
    member.begin(
        Plan((Chunk(slice(before, before + shown), 0, torch.ones(shown).bool()),), torch.zeros(length, 1), 3, 1)
    )
    found = []
    for number in range(query.shape[1]):
        given = query[:, number, :, None], key[:, :, : length + number + 1]
        assert member.step(0, *given) is None
        found.append(member.step(1, *given).tolist())
        assert member.step(2, *given).tolist() == found[-1]
    return found


@pytest.mark.parametrize("case", each("cases"))
def test_a_token_reads_what_it_does_in_the_authors_code(stored, case: dict) -> None:
    """None: all keys, where attention is like the last token's. The last two rows of a video are not counted there."""
    member = build("dycoke_decoding", keep=1 - case["dycoke_p"], variant="released", layer=1)
    found = read_by(member, stored, case, case["shape"][1] + 2)
    length = sum(case["shape"])
    assert found == [list(range(length + n)) if rows is None else rows for n, rows in enumerate(case["kept"], 1)]


@pytest.mark.parametrize("case", each("cases"))
def test_the_fixed_variant_reads_what_the_last_token_did_where_its_attention_is_alike(stored, case: dict) -> None:
    before, video, _ = case["shape"]
    count = int(video * (1 - case["dycoke_p"]))
    member = build("dycoke_decoding", keep=(1 + 2 * count / video) / 3, layer=1)
    sets = []
    for rows, alike in zip(case["kept"], case["similarity"], strict=True):
        assert (rows is None) == (alike >= ALIKE)
        sets.append(sets[-1] if rows is None else [row for row in rows if before <= row < before + video])
    assert [
        [row for row in rows if before <= row < before + video] for rows in read_by(member, stored, case, video)
    ] == sets
    gone = [set(one) - set(two) for one, two in pairwise(sets)]
    assert any(lost & set(later) for n, lost in enumerate(gone) for later in sets[n + 2 :])  # some come back


@torch.no_grad()
@pytest.mark.parametrize("case", each("replies"))
def test_a_reply_equals_the_authors(stored, case: dict, monkeypatch) -> None:
    """Logits after the prompt and after each of five tokens; `query_scale` makes attention sharper or flatter."""
    model, embeds, video = loaded("llava_ov")
    text = model.get_decoder()
    for layer in text.layers:
        for name in ("weight", "bias"):
            given = getattr(layer.self_attn.q_proj, name)
            monkeypatch.setattr(given, "data", given.data * case["query_scale"])
    member = build("dycoke_decoding", keep=1 - case["dycoke_p"], variant="released", layer=case["layer"])
    head = model.get_output_embeddings()
    reading = prefill(text, head, embeds.detach(), torch.arange(len(embeds))[None, None], video, member)
    options = {
        "do_sample": False,
        "eos_token_id": [],
        "pad_token_id": 0,
        "output_logits": True,
        "return_dict_in_generate": True,
    }
    written = Continuation(reading).generate(max_new_tokens=6, **options)
    torch.testing.assert_close(torch.cat(written.logits), stored[f"{case['id']}.logits"], atol=1e-5, rtol=0)
    assert written.sequences[0, :5].tolist() == case["ids"]
