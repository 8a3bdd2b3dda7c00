"""Writing on after a prompt that was read in pieces, with all of transformers' generation options.

Letters: A rotary axes, B rows, D backbone width, V vocabulary.
"""

from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, GenerationMixin, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from langdc.attention import using
from langdc.kvcache import KVCache
from langdc.prefill import Reading, run


class Continuation(PreTrainedModel, GenerationMixin):
    """A `Reading` as something that transformers can `generate` from: sampling, beams, stop strings, streaming.

    continuation = Continuation(reading)
    ids = continuation.write(max_new_tokens=32, eos_token_id=2)

    The first step takes the logits that reading left; later steps run the text model with positions of their own.
    """

    config_class = PretrainedConfig
    main_input_name = "input_ids"

    def __init__(self, reading: Reading, generation_config: GenerationConfig | None = None) -> None:
        sizes = reading.text_model.config
        super().__init__(PretrainedConfig.from_dict({"hidden_size": sizes.hidden_size, "vocab_size": sizes.vocab_size}))
        self.reading, self.place = reading, reading.following
        self.generation_config = generation_config or GenerationConfig()

    @property
    def device(self) -> torch.device:
        """Where the model lives."""
        return self.reading.logits.device

    @property
    def dtype(self) -> torch.dtype:
        """What the model computes in."""
        return self.reading.text_model.dtype

    def write(self, **options: Any) -> Tensor:
        """New token ids [B,n]; options are those of transformers' `generate`. A reading is written on only once."""
        if self.place is not self.reading.following:
            raise ValueError("This reading was written on already; read the prompt again for another answer.")
        blank = torch.empty(1, 1, self.config.hidden_size, device=self.device, dtype=self.dtype)
        with torch.no_grad(), using(self.reading.text_model):
            # the type of `generate` asks for attributes that only some models have
            generate: Any = super().generate  # pyright: ignore[reportAttributeAccessIssue]
            return generate(inputs_embeds=blank, past_key_values=self.reading.cache, **options)

    def prepare_inputs_for_generation(
        self,
        input_ids: Tensor,
        is_first_iteration: bool = False,
        inputs_embeds: Tensor | None = None,
        past_key_values: KVCache | None = None,
        use_cache: bool = True,
        **kwargs: Any,
    ) -> dict:
        """What `forward` needs: the tokens so far [B,n], and whether none was written yet."""
        return {"input_ids": input_ids, "first": is_first_iteration}

    def forward(self, input_ids: Tensor, first: bool = False, **kwargs: Any) -> CausalLMOutputWithPast:
        """Logits [B,1,V] after the tokens [B,n], the last of which is new; after the prompt where it is the `first`."""
        reading, rows = self.reading, len(input_ids)
        if first:
            if rows > 1:
                reading.cache.batch_repeat_interleave(rows)
            logits = reading.logits[:, None].expand(rows, -1, -1)
        else:
            logits = reading.lm_head(self._states(input_ids[:, -1:]))
        return CausalLMOutputWithPast(logits=logits, past_key_values=reading.cache)

    def _states(self, ids: Tensor) -> Tensor:
        reading = self.reading
        reading.cache.expect(self.place, reading.moved_axes > 0, max(1, reading.moved_axes))
        embeds = reading.text_model.get_input_embeddings()(ids)
        positions = self.place.expand(-1, len(ids), -1)
        self.place = self.place + 1
        return run(reading.text_model, embeds, positions, reading.cache, _Follower(reading), {})


class _Follower:
    """Keeps new queries on the layers' time lines."""

    def __init__(self, reading: Reading) -> None:
        self.cache = reading.cache

    def attending(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return self.cache.follow(layer, query)
