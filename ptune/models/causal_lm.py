"""A causal language model with a prefix: its forward, and how it is saved and loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor, nn
from transformers import Cache, GenerationConfig
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.utils import can_return_tuple

from ptune.base.folder import Generation, find_base_model
from ptune.errors import ModelError
from ptune.models.generation_defaults import default_generation_config
from ptune.models.label_loss import logits_and_loss
from ptune.models.lora import lora_form
from ptune.quantization.layers import bits_of


class CausalLM:
    """What both model classes add to those of transformers; stands before them.

    Attributes:
        base_model: the decoder, which holds the prefix.
        lm_head: `[hidden] -> [vocabulary]`.
        accepts_loss_kwargs: the library's Trainer may pass `num_items_in_batch`.
    """

    base_model: Any
    config: Any
    generation_config: GenerationConfig
    lm_head: nn.Module
    accepts_loss_kwargs = True

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Name the class among the models that the library's text generation pipeline takes."""
        super().__init_subclass__(**kwargs)
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[cls.__name__] = cls.__name__  # no model_type's name

    @property
    def scoring_head(self) -> nn.Module:
        """What makes logits of the last hidden states; `lm_head`."""
        return self.lm_head

    @can_return_tuple  # type: ignore[untyped-decorator]
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        label_logits_only: bool = False,
        num_items_in_batch: Tensor | int | None = None,
        shift_labels: Tensor | None = None,
        teacher_states: Tensor | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Score tokens; see the decoder's forward and `logits_and_loss` for the arguments."""
        outputs = self.base_model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            **kwargs,
        )
        logits, loss = logits_and_loss(
            self.scoring_head,
            outputs.last_hidden_state,
            labels,
            shift_labels,
            logits_to_keep,
            label_logits_only,
            num_items_in_batch,
            teacher_states,
        )
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    def save_pretrained(self, save_directory: str | Path, **kwargs: Any) -> None:
        """Save in the official layout, prefix included, as `load_model` reads it.

        Raises:
            ModelError: the layout has no place for these weights.
        """
        if lora_form(self) is not None:
            raise ModelError(
                "save_pretrained has no place for a LoRA in the model's own layout; fold it into "
                "the weights with ptune merge"
            )
        if bits_of(self) == "nf4":  # type: ignore[arg-type]
            raise ModelError(
                "save_pretrained cannot write weights in nf4, which the official layout does not "
                "have; load the model in other bits, or put the prefix beside the base's own "
                "weights with ptune merge"
            )
        super().save_pretrained(save_directory, **kwargs)  # type: ignore[misc]

    def adjust_generation_fn(
        self, generation_config: GenerationConfig | None, *args: Any, **kwargs: Any
    ) -> None:
        """Called by the library after `from_pretrained`; the fourth argument is the path."""
        super().adjust_generation_fn(generation_config, *args, **kwargs)  # type: ignore[misc]
        path = args[2]  # None where a state dict was given
        if path and generation_config is None and self.generation_config._from_model_config:
            known = getattr(self.config, "prompt_format", None)
            try:
                base = find_base_model(path, weights=False, trained_format=known)
                generation = base.generation
            except ModelError:  # a later one, and nothing in the folder says which
                generation = Generation.CHATGLM2
            self.generation_config = default_generation_config(generation, self.config)
