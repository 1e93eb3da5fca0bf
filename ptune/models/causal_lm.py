"""The forward of a causal language model with a prefix: decoder, head, loss."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers import Cache
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.utils import can_return_tuple

from ptune.models.label_loss import logits_and_loss


class CausalLMForward:
    """Gives a model class of transformers its `forward`.

    Attributes:
        base_model: the decoder, which holds the prefix.
        lm_head: `[hidden] -> [vocabulary]`.
        accepts_loss_kwargs: the library's Trainer may pass `num_items_in_batch`.
    """

    base_model: Any
    lm_head: nn.Module
    accepts_loss_kwargs = True

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
            self.lm_head,
            outputs.last_hidden_state,
            labels,
            shift_labels,
            logits_to_keep,
            label_logits_only,
            num_items_in_batch,
        )
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )
