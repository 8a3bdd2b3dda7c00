"""Replies to chunked prompts. Letters: A rotary axes, B rows, V vocabulary."""

from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, GenerationMixin, LogitsProcessor, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from langdc.attention import using
from langdc.kvcache import KVCache
from langdc.prefill import PrefillOutput, forward_text
from langdc.types import Grids


class Continuation(PreTrainedModel, GenerationMixin):
    """A `PrefillOutput` that transformers can `generate` from: `Continuation(output).generate(max_new_tokens=32)`. The
    first step uses the logits of the prefill; later steps run the text model.
    """

    config_class = PretrainedConfig
    main_input_name = "input_ids"

    def __init__(self, output: PrefillOutput, generation_config: GenerationConfig | None = None) -> None:
        sizes = output.text_model.config
        super().__init__(PretrainedConfig.from_dict({"hidden_size": sizes.hidden_size, "vocab_size": sizes.vocab_size}))
        self.output, self.position = output, output.next_position
        self.generation_config = generation_config or GenerationConfig()

    @property
    def device(self) -> torch.device:
        return self.output.logits.device

    @property
    def dtype(self) -> torch.dtype:
        return self.output.text_model.dtype

    def generate(self, **options: Any) -> Any:
        """New ids [B,n], or what the options of transformers' `generate` ask for; ValueError on a second call."""
        if self.position is not self.output.next_position:
            raise ValueError("This prompt was continued already; read it again for another reply.")
        blank = torch.empty(1, 1, self.config.hidden_size, device=self.device, dtype=self.dtype)
        with torch.no_grad(), using(self.output.text_model):
            # the type of `generate` asks for attributes that only some models have
            generate: Any = super().generate  # pyright: ignore[reportAttributeAccessIssue]
            return generate(inputs_embeds=blank, past_key_values=self.output.cache, **options)

    def prepare_inputs_for_generation(
        self,
        input_ids: Tensor,
        is_first_iteration: bool = False,
        inputs_embeds: Tensor | None = None,
        past_key_values: KVCache | None = None,
        use_cache: bool = True,
        **kwargs: Any,
    ) -> dict:
        """Arguments of `forward`: the tokens so far [B,n], and whether none was written yet."""
        return {"input_ids": input_ids, "first": is_first_iteration}

    def forward(self, input_ids: Tensor, first: bool = False, **kwargs: Any) -> CausalLMOutputWithPast:
        """Logits [B,1,V] after the tokens [B,n], the last of which is new; after the prompt where it is the `first`."""
        output, rows = self.output, len(input_ids)
        if rows > 1 and output.steps is not None:
            raise ValueError(
                f"{rows} rows are written at once, and {type(output.steps.compressor).__name__} chooses what one token "
                "reads. Set num_beams and num_return_sequences to 1."
            )
        if first:
            if rows > 1:
                output.cache.reorder_cache(torch.zeros(rows, dtype=torch.long))  # pyright: ignore[reportArgumentType]
            logits = output.logits[:, None].expand(rows, -1, -1)
        else:
            logits = output.lm_head(self._states(input_ids[:, -1:]))
        return CausalLMOutputWithPast(logits=logits, past_key_values=output.cache)

    def _states(self, ids: Tensor) -> Tensor:
        output = self.output
        output.cache.announce(self.position, output.offset_axes > 0, max(1, output.offset_axes))
        embeds = output.text_model.get_input_embeddings()(ids)
        positions = self.position.expand(-1, len(ids), -1)
        self.position = self.position + 1
        return forward_text(output.text_model, embeds, positions, output.cache, self)

    def before_attention(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """New queries at the layer's own positions, and what they attend to; see `langdc.attention.Observer`."""
        query, steps = self.output.cache.apply_offset(layer, query), self.output.steps
        return query, *((key, value) if steps is None else steps.read(layer, query, key, value))


class ScoreCheck(LogitsProcessor):
    """Notes scores that are not finite, which argmax and sampling accept. `finite` waits for the device."""

    def __init__(self) -> None:
        self._broken: Tensor | None = None

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        # the largest is NaN if any is, and -inf if every token is forbidden; a single -inf is a forbidden token
        broken = ~scores.amax(-1).isfinite().all()
        self._broken = broken if self._broken is None else self._broken | broken
        return scores

    @property
    def finite(self) -> bool:
        """Whether all scores were finite."""
        return self._broken is None or not self._broken


def require_finite(encoded: Grids) -> None:
    """ValueError if an encoder's grids of a video hold NaN or infinity, which a compressor could drop silently."""
    if not encoded:
        return
    # minimum and maximum are NaN or infinite if any value is, and need no copy; one synchronisation for all grids
    extremes = [[torch.stack(part.aminmax()) for part in (grid.values, *grid.extra)] for grid in encoded.values()]
    finite = torch.stack([torch.stack(per_grid).isfinite().all() for per_grid in extremes])
    if not finite.all():
        named = ", ".join(name for name, fine in zip(encoded, finite.tolist(), strict=True) if not fine)
        raise ValueError(
            f"The encoder {named} gives NaN or infinity for this video. Look at its frames, or load the encoder in "
            "float32 and see whether a weight is not finite."
        )
